// "sluice explain" in the words of whoever asks: a client, a listener and perhaps a server name. Pure.
import { canonicalIp, isHostName, isIp } from '../base/addresses.ts'

export interface Asked {
  /** In their one spelling. */
  client: string
  /** null: an address of the machine that no route names. */
  address: string | null
  port: number
  protocol: 'tcp' | 'udp'
  /** Lower case; null: the client names no server. */
  serverName: string | null
}

/** What the question is, or what is wrong with it. */
export function parseAsked(client: string, listener: string, serverName?: string | null): Asked | { error: string } {
  const from = addressOf(client)
  if (from === undefined)
    return { error: `${quote(client)} is no client: write "192.0.2.7", "192.0.2.7:40000" or "[2001:db8::7]:40000"` }
  const [, where, protocol = 'tcp'] = /^(.*?)(?:\/(tcp|udp))?$/s.exec(listener)!
  const at = listenerOf(where!)
  if (!at)
    return { error: `${quote(listener)} is no listener: write "443", "192.0.2.1:443", "[2001:db8::1]:443" or "53/udp"` }
  const name = serverName?.toLowerCase().replace(/\.$/, '') || null
  if (name !== null && !isHostName(name)) return { error: `${quote(serverName!)} is no server name` }
  return { client: from, ...at, protocol: protocol as Asked['protocol'], serverName: name }
}

// The words of a question go back to a terminal.
const quote = (text: string) => `"${text.replace(/[^ -~]/g, '?').slice(0, 100)}"`

const portOf = (text: string) =>
  /^\d{1,5}$/.test(text) && Number(text) > 0 && Number(text) < 65_536 ? Number(text) : undefined

function addressOf(text: string): string | undefined {
  if (isIp(text)) return plain(text)
  return endOf(text)?.address
}

function listenerOf(text: string): Pick<Asked, 'address' | 'port'> | undefined {
  const port = portOf(text.replace(/^(?:\*|\[::\]|0\.0\.0\.0)?:/, ''))
  return port === undefined ? endOf(text) : { address: null, port }
}

function endOf(text: string): { address: string; port: number } | undefined {
  const found = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d+)$/.exec(text)
  const [address, port] = found ? [found[1] ?? found[2]!, portOf(found[3]!)] : []
  return address !== undefined && port !== undefined && isIp(address) ? { address: plain(address), port } : undefined
}

/** An IPv4 client of a socket for both families is an IPv4 client. */
function plain(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)
  return canonicalIp(mapped ? mapped[1]! : address)
}
