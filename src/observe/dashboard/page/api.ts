// Asking the gateway, and what it answers.
import type { ConnectionRecord } from '../../../connections/record.ts'
import type { Minute, Rates } from '../../../connections/throughput.ts'

export type { ConnectionRecord }
export type Carrier = ConnectionRecord['carrier']

export interface Status {
  version: string
  startedAt: string
  routes: { total: number; active: number }
  connections: { kernel: number; proxied: number }
  worker: { restarts: number; accepting: boolean }
  kernel: { active: boolean; phase: string; reason: string | null; eventsLost: number }
  conntrack: { entries: number; limit: number; fullInSeconds: number | null } | null
  drains: number
  anomalies: number
  rates: Rates | null
  history: Minute[]
}

export interface Route {
  name: string
  carrier: Carrier
  planned: Carrier
  state: 'active' | 'applying' | 'fallback' | 'failed'
  reason: string
  draining: boolean
  listens: { address: string | null; from: number; to: number; protocol: 'tcp' | 'udp' }[]
  connections: number
  total: number
  bytesIn: number
  bytesOut: number
  rates: Rates | null
  refused: Record<string, number>
}

export interface Target {
  route: string
  target: string
  configured?: string
  state: 'up' | 'down' | 'draining' | 'drained'
  share: number
  connections: number
  total: number
  bytesIn: number
  bytesOut: number
  lastError?: string
}

export interface Certificate {
  name: string
  names: string[]
  routes: string[]
  source: string
  state: 'valid' | 'expiring' | 'expired' | 'pending' | 'failed'
  keys: string[]
  issuer?: string
  notAfter?: string
  expiresInSeconds?: number
  lastError?: string
  nextAttempt?: string
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message)
  }
}

const ANSWER_MS_MAX = 20_000

async function ask<Answer>(path: string, method: string): Promise<Answer> {
  const response = await fetch(path, { method, signal: AbortSignal.timeout(ANSWER_MS_MAX) })
  // The login has run out: nothing of what is shown can be renewed.
  if (response.status === 401) location.assign('/login')
  const answer = (await response.json().catch(() => ({}))) as Answer & { error?: string }
  if (!response.ok) throw new ApiError(response.status, answer.error ?? `${response.status} ${response.statusText}`)
  return answer
}

export const getStatus = () => ask<Status>('/v1/status', 'GET')
export const getRoutes = async () => (await ask<{ routes: Route[] }>('/v1/routes', 'GET')).routes
export const getTargets = async () => (await ask<{ targets: Target[] }>('/v1/targets', 'GET')).targets
export const getConnections = async () =>
  (await ask<{ connections: ConnectionRecord[] }>('/v1/connections', 'GET')).connections
export const getCertificates = async () =>
  (await ask<{ certificates: Certificate[] }>('/v1/certificates', 'GET')).certificates
export const closeConnection = (id: string) => ask(`/v1/connections/${encodeURIComponent(id)}`, 'DELETE')

export async function logOut() {
  await fetch('/logout', { method: 'POST' })
  location.assign('/login')
}
