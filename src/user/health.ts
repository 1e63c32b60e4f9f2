// Health checks of targets: connects to each again and again, as its route's clients would, and says how it went. At most so
// many at once, each with a deadline, and no socket is kept.
import { formatEnd } from '../base/addresses.ts'
import { HEALTH_CHECKS_AT_ONCE_MAX, HEALTH_ERROR_CHARACTERS_MAX, REPORT_INTERVAL_MS } from '../base/limits.ts'
import type { CheckResult, HealthCheck } from '../channel/messages.ts'
import { connectEnd, isConnected, isOurs } from './connect.ts'
import { End, secureHandlers, type Consumer, type Owner } from './end.ts'
import { peekHttpStatus } from './peek/http-status.ts'
import { localHeader } from './peek/proxy-header.ts'
import { Timed, type Timers } from './timers.ts'

/** Checks of many targets must not meet, and those of many gateways must not meet at one target. */
const JITTER = 0.1

interface Outlets {
  readonly timers: Timers
  checked(results: CheckResult[]): void
  crashed(error: unknown): void
}

export class HealthChecks {
  /** By what they do: a check that stays in the list keeps its rhythm. */
  #checks = new Map<string, Check>()
  #ready: Check[] = []
  #starting = false
  #results: CheckResult[] = []
  #timer: Timer | undefined
  running = 0

  constructor(readonly outlets: Outlets) {}

  /** All checks to make from now on. */
  set(wanted: HealthCheck[]) {
    const before = this.#checks
    this.#checks = new Map()
    for (const spec of wanted) {
      const key = JSON.stringify(spec)
      const known = this.#checks.get(key) ?? before.get(key)
      const check = known ?? new Check(spec, this)
      this.#checks.set(key, check)
      before.delete(key)
      // The first checks of a configuration are spread over the interval.
      if (!known) this.outlets.timers.arm(check, Math.random() * spec.intervalMs)
    }
    for (const check of before.values()) check.stop()
    this.#ready = this.#ready.filter((check) => !check.stopped)
    if (wanted.length === 0) this.#flush()
  }

  /** It is its turn. */
  ready(check: Check) {
    this.#ready.push(check)
    this.#start()
  }

  ended(check: Check, error: string | null | undefined, ms: number) {
    this.running--
    const { route, endpoint } = check.spec
    if (error !== undefined && !check.stopped) {
      const result = { route, endpoint, ok: error === null, ms }
      this.#results.push(error === null ? result : { ...result, error: error.slice(0, HEALTH_ERROR_CHARACTERS_MAX) })
      this.#timer ??= setTimeout(() => this.#flush(), REPORT_INTERVAL_MS)
    }
    if (!check.stopped) this.outlets.timers.arm(check, Math.max(0, jittered(check.spec.intervalMs) - ms))
    this.#start()
  }

  #start() {
    // A connect that fails at once comes back here: a thousand of them must not stand on one stack.
    if (this.#starting) return
    this.#starting = true
    while (this.running < HEALTH_CHECKS_AT_ONCE_MAX) {
      const check = this.#ready.shift()
      if (!check) break
      if (check.stopped) continue
      this.running++
      check.start()
    }
    this.#starting = false
  }

  #flush() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const results = this.#results
    this.#results = []
    if (results.length > 0) this.outlets.checked(results)
  }
}

const jittered = (ms: number) => ms * (1 - JITTER + 2 * JITTER * Math.random())

/** One endpoint's check: waits, runs, waits. Its one deadline is the next turn, or the end of this one. */
class Check extends Timed implements Owner {
  stopped = false
  #running = false
  #startedAt = 0
  #end: End | null = null

  constructor(
    readonly spec: HealthCheck,
    readonly checks: HealthChecks,
  ) {
    super()
  }

  override expired() {
    if (this.#running) this.end('no answer in time')
    else this.checks.ready(this)
  }

  start() {
    const { host, port, timeoutMs } = this.spec
    this.#running = true
    this.#startedAt = performance.now()
    this.checks.outlets.timers.arm(this, timeoutMs)
    const end = (this.#end = new End(this, connecting))
    const path = host.startsWith('unix:') ? host.slice('unix:'.length) : undefined
    const began = connectEnd(end, host, port, path)
    if (began === 'connected') this.connected(end)
    // What this machine lacks is no result.
    else if (began !== 'connecting') this.end(isOurs(began.error) ? undefined : wordsOf(began.error))
  }

  connected(end: End) {
    const { type, sendProxyProtocol } = this.spec
    // Also where nothing else is said: what expects a header logs each connection without one as an error.
    if (sendProxyProtocol) end.send(localHeader(sendProxyProtocol))
    if (type === 'tcp') this.end(null)
    else if (type === 'tls') this.#handshake(end)
    else {
      end.consumer = answering
      end.send(Buffer.from(requestOf(this.spec, type.http), 'latin1'))
    }
  }

  #handshake(end: End) {
    const raw = end.detach()!
    end.consumer = handshaking
    const { name } = this.spec
    try {
      const [tap, secure] = raw.upgradeTLS<End>({
        tls: { rejectUnauthorized: false, ...(name === null ? {} : { serverName: name }) },
        data: end,
        socket: secureHandlers,
      })
      // The raw socket goes on hearing ciphertext; nobody listens.
      tap.data = raw.data
      if (this.#end === end) end.socket = secure
      else secure.terminate()
    } catch (error) {
      raw.terminate()
      this.end(`TLS: ${(error as Error).message}`)
    }
  }

  /** null: it was good. undefined: it says nothing. */
  end(error: string | null | undefined) {
    if (!this.#running) return
    this.#running = false
    this.#close()
    this.checks.ended(this, error, Math.round(performance.now() - this.#startedAt))
  }

  /** It is not wanted any more. */
  stop() {
    this.stopped = true
    this.#close()
    this.end(undefined)
  }

  #close() {
    this.checks.outlets.timers.disarm(this)
    const end = this.#end
    this.#end = null
    // Reset, or each check would leave a socket in TIME_WAIT.
    end?.reset()
  }

  touch() {}

  crashed(error: unknown) {
    this.checks.outlets.crashed(error)
    this.end(undefined)
  }
}

const ERRNO_NAME = /^E[A-Z]+$/

const checkOf = (end: End) => end.owner as Check

const connecting: Consumer = {
  // A target that speaks first can overtake the event that says it is connected.
  received(end) {
    checkOf(end).connected(end)
  },
  ended() {},
  drained(end) {
    if (isConnected(end)) checkOf(end).connected(end)
    // else the connect has failed: closed() follows.
  },
  closed(end, error) {
    checkOf(end).end(wordsOf((error as NodeJS.ErrnoException | undefined)?.code))
  },
}

const handshaking: Consumer = {
  received() {},
  ended(end) {
    checkOf(end).end('TLS: closed during the handshake')
  },
  drained() {},
  closed(end, error) {
    checkOf(end).end(`TLS: ${error?.message ?? 'closed during the handshake'}`)
  },
  secured(end, ok, error) {
    // What is held against the certificate comes here too, with a code of OpenSSL's; the handshake itself fails with an errno.
    const failed = !ok && ERRNO_NAME.test((error as NodeJS.ErrnoException | null)?.code ?? 'EPROTO')
    checkOf(end).end(failed ? `TLS: ${error?.message ?? 'the handshake failed'}` : null)
  },
}

const answering: Consumer = {
  received(end, bytes) {
    end.hold(bytes)
    const answer = peekHttpStatus(end.peekHeld())
    if (answer.verdict === 'more') return
    if (answer.verdict === 'no') return checkOf(end).end('the answer is not HTTP/1')
    const { status } = answer
    checkOf(end).end(status < 400 ? null : `status ${status}`)
  },
  ended(end) {
    checkOf(end).end('closed without an answer')
  },
  drained() {},
  closed(end) {
    checkOf(end).end('closed without an answer')
  },
}

function requestOf({ host, port, name }: HealthCheck, path: string): string {
  const address = host.startsWith('unix:') ? 'localhost' : formatEnd(name ?? host, port)
  return `GET ${path} HTTP/1.1\r\nHost: ${address}\r\nUser-Agent: sluice\r\nAccept: */*\r\nConnection: close\r\n\r\n`
}

const WORDS: Record<string, string> = {
  EACCES: 'permission denied',
  EAGAIN: 'its backlog is full',
  ECONNRESET: 'connection reset',
  EHOSTUNREACH: 'no route to it',
  ENETUNREACH: 'its network is unreachable',
  ENOENT: 'no such socket',
  ETIMEDOUT: 'no answer in time',
}
/** A connect that fails late comes without a code mostly: a RST. */
const wordsOf = (code: string | undefined) => WORDS[code ?? ''] ?? 'connection refused'
