// Who has a port: the sockets of this network namespace as /proc/net lists them, and the processes that hold them. Reads only.
import { open, opendir, readFile, readlink } from 'node:fs/promises'
import { canonicalIp, familyOf, formatEnd, formatIp, isLoopback } from '../base/addresses.ts'
import { OWNER_FILES_MAX, OWNER_MS_MAX, OWNERS_NAMED_MAX, SOCKET_TABLE_BYTES_MAX } from '../base/limits.ts'

export type Protocol = 'tcp' | 'udp'

/** A TCP socket that listens, or a UDP socket without a peer: both take what anybody sends to their port. */
export interface BoundSocket {
  protocol: Protocol
  /** "::" may stand for both families: whether it does is not in the table. */
  address: string
  port: number
  /** "0": it belongs to the kernel itself. */
  inode: string
}

/** What somebody wants for himself. address null: every address. */
export interface Wanted {
  protocol: Protocol
  address: string | null
  from: number
  to: number
}

/** null: nobody that we may see. */
export type Owner = { name: string; pid: number } | 'kernel' | null

export interface Taken {
  socket: BoundSocket
  owner: Owner
}

// ---- the tables, pure ----

/** The state of sockets that take what anybody sends: TCP_LISTEN; of UDP, TCP_CLOSE. */
const STATE: Record<Protocol, string> = { tcp: '0A', udp: '07' }

/** One line of /proc/net/tcp, tcp6, udp or udp6; undefined for the heading and for what is no such line. */
export function parseSocketLine(
  line: string,
): { address: string; port: number; state: string; inode: string } | undefined {
  const [, local, , state, , , , , , inode] = line.trim().split(/\s+/)
  const [, hex, port] = /^((?:[0-9A-F]{8}){1,4}):([0-9A-F]{4})$/.exec(local ?? '') ?? []
  if (hex === undefined || (hex.length !== 8 && hex.length !== 32)) return undefined
  if (!/^[0-9A-F]{2}$/.test(state ?? '') || !/^\d+$/.test(inode ?? '')) return undefined
  return { address: parseAddress(hex), port: parseInt(port!, 16), state: state!, inode: inode! }
}

/** The kernel prints the words of an address as numbers of this machine, which is little-endian wherever Bun runs. */
function parseAddress(hex: string): string {
  const bytes = Buffer.from(hex, 'hex')
  for (let at = 0; at < bytes.length; at += 4) bytes.subarray(at, at + 4).reverse()
  return canonicalIp(formatIp(bytes))
}

export const boundSockets = (text: string, protocol: Protocol): BoundSocket[] =>
  text.split('\n').flatMap((line) => {
    const parsed = parseSocketLine(line)
    if (parsed?.state !== STATE[protocol]) return []
    const { address, port, inode } = parsed
    return [{ protocol, address, port, inode }]
  })

const isAny = (address: string) => address === '::' || address === '0.0.0.0'

/** The socket takes something of what is wanted. One on all IPv6 addresses counts for IPv4 too: most do, and which do not
 *  cannot be seen. */
export function overlaps(socket: BoundSocket, wanted: Wanted): boolean {
  if (socket.protocol !== wanted.protocol || socket.port < wanted.from || socket.port > wanted.to) return false
  const { address } = wanted
  if (address === null || address === '::' || socket.address === '::' || address === socket.address) return true
  return familyOf(address) === familyOf(socket.address) && (isAny(address) || isAny(socket.address))
}

/** The same for a range that is carried by the kernel alone: it takes nothing from loopback addresses. */
export const overlapsInKernel = (socket: BoundSocket, wanted: Wanted) =>
  !isLoopback(socket.address) && overlaps(socket, wanted)

/** "nginx (pid 812)" */
export const ownerText = (owner: Owner) =>
  owner === null
    ? 'another program'
    : owner === 'kernel'
      ? 'the kernel itself (such as WireGuard, VXLAN or NFS)'
      : `${owner.name} (pid ${owner.pid})`

/** "nginx (pid 812) listens on [::]:8080", one clause for each program. */
export function takenText(taken: Taken[]): string {
  const places = new Map<string, Taken[]>()
  for (const one of taken) places.set(ownerText(one.owner), [...(places.get(ownerText(one.owner)) ?? []), one])
  const clauses = [...places].map(([who, [first, ...others]]) => {
    const { socket } = first!
    const verb = socket.protocol === 'tcp' ? 'listens on' : 'has'
    const more = others.length > 0 ? ` and ${others.length} more` : ''
    return `${who} ${verb} ${formatEnd(socket.address, socket.port)}${more}`
  })
  const left = clauses.length - OWNERS_NAMED_MAX
  return clauses.slice(0, OWNERS_NAMED_MAX).join(', ') + (left > 0 ? `, and ${left} more programs` : '')
}

// ---- reading ----

/** The sockets that take what anybody sends, of both families. */
export async function readBoundSockets(protocol: Protocol): Promise<BoundSocket[]> {
  const tables = await Promise.all([protocol, `${protocol}6`].map((table) => readTable(`/proc/net/${table}`, protocol)))
  return tables.flat()
}

/** The kernel lists the sockets that listen before a million connections: it is read as far as they go. */
async function readTable(path: string, protocol: Protocol): Promise<BoundSocket[]> {
  const found: BoundSocket[] = []
  let file
  try {
    file = await open(path)
  } catch {
    return [] // no IPv6 on this machine
  }
  try {
    const buffer = Buffer.alloc(65_536)
    let rest = ''
    for (let bytes = 0; bytes < SOCKET_TABLE_BYTES_MAX;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, null)
      if (bytesRead === 0) break
      bytes += bytesRead
      const text = rest + buffer.toString('latin1', 0, bytesRead)
      const end = text.lastIndexOf('\n') + 1
      rest = text.slice(end)
      found.push(...boundSockets(text.slice(0, end), protocol))
      const last = parseSocketLine(text.slice(text.lastIndexOf('\n', end - 2) + 1, end))
      if (protocol === 'tcp' && last !== undefined && last.state !== STATE.tcp) break
    }
  } finally {
    await file.close()
  }
  return found
}

/** inode → the first process that holds that socket. What is not found within the limits is not in it. */
export async function socketOwners(inodes: ReadonlySet<string>): Promise<Map<string, { name: string; pid: number }>> {
  const owners = new Map<string, { name: string; pid: number }>()
  const wanted = new Set(inodes)
  const deadline = performance.now() + OWNER_MS_MAX
  for (const entry of await entries('/proc')) {
    if (wanted.size === 0 || performance.now() > deadline) break
    if (!/^\d+$/.test(entry)) continue
    const pid = Number(entry)
    for (const inode of await socketsAmong(wanted, pid, deadline)) {
      wanted.delete(inode)
      owners.set(inode, { name: await nameOf(pid), pid })
    }
  }
  return owners
}

/** The wanted sockets that this process holds. Empty for one that we may not look into, or that is gone. */
async function socketsAmong(wanted: ReadonlySet<string>, pid: number, deadline: number): Promise<string[]> {
  const found: string[] = []
  for (const fd of await entries(`/proc/${pid}/fd`, OWNER_FILES_MAX)) {
    if (found.length === wanted.size || performance.now() > deadline) break
    const link = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')
    const inode = /^socket:\[(\d+)\]$/.exec(link)?.[1]
    if (inode !== undefined && wanted.has(inode) && !found.includes(inode)) found.push(inode)
  }
  return found
}

/** Names in a directory, in the kernel's order: processes and descriptors by number. */
async function entries(path: string, max = Infinity): Promise<string[]> {
  const names: string[] = []
  try {
    for await (const { name } of await opendir(path)) {
      if (names.length >= max) break
      names.push(name)
    }
  } catch {
    // Gone, or not ours to see.
  }
  return names
}

/** As `ps` shows it. A program chooses it freely: only what can be printed is kept. */
async function nameOf(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')
  return text.replace(/[^\x20-\x7e]/g, '') || 'a program'
}

/** This process and its children: what they have is ours. */
async function isOurs(pid: number, ours: number): Promise<boolean> {
  if (pid === ours) return true
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  return /^PPid:\t(\d+)$/m.exec(status)?.[1] === String(ours)
}

/** Those of the sockets that a process other than `ours` and its children holds, with the holder. */
export async function withOwners(sockets: BoundSocket[], ours: number): Promise<Taken[]> {
  if (sockets.length === 0) return []
  const owners = await socketOwners(new Set(sockets.map(({ inode }) => inode).filter((inode) => inode !== '0')))
  const taken: Taken[] = []
  for (const socket of sockets) {
    const owner = socket.inode === '0' ? 'kernel' : (owners.get(socket.inode) ?? null)
    if (owner === null || owner === 'kernel' || !(await isOurs(owner.pid, ours))) taken.push({ socket, owner })
  }
  return taken
}
