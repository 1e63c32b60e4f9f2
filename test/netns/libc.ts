// The few calls of libc the laboratory needs and Bun does not have: switching the calling thread's network namespace,
// and raw TCP sockets made by hand, so that a socket can be born inside a namespace and be adopted by Bun afterwards.
import { CString, dlopen, ptr } from 'bun:ffi'

const { symbols: c } = dlopen('libc.so.6', {
  setns: { args: ['i32', 'i32'], returns: 'i32' },
  socket: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
  setsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'u32'], returns: 'i32' },
  bind: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  listen: { args: ['i32', 'i32'], returns: 'i32' },
  connect: { args: ['i32', 'ptr', 'u32'], returns: 'i32' },
  getsockname: { args: ['i32', 'ptr', 'ptr'], returns: 'i32' },
  getsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'ptr'], returns: 'i32' },
  close: { args: ['i32'], returns: 'i32' },
  __errno_location: { args: [], returns: 'ptr' },
  strerror: { args: ['i32'], returns: 'ptr' },
})
const { symbols: memory } = dlopen('libc.so.6', { memcpy: { args: ['ptr', 'ptr', 'u64'], returns: 'ptr' } })

const CLONE_NEWNET = 0x40000000
const AF_INET = 2
const AF_INET6 = 10
const SOCK_STREAM_NONBLOCK_CLOEXEC = 0o1 | 0o4000 | 0o2000000
const SOL_SOCKET = 1
const SO_REUSEADDR = 2
const SO_ERROR = 4
const EINPROGRESS = 115

function errno(): number {
  const out = new Int32Array(1)
  memory.memcpy(ptr(out), c.__errno_location()!, 4n)
  return out[0]!
}

export function describe(code: number): string {
  return new CString(c.strerror(code)!).toString()
}

/** The result of a call, or an Error that says which call failed and why. Must be asked before anything else runs. */
function must(call: string, result: number): number {
  if (result >= 0) return result
  const code = errno()
  throw Object.assign(new Error(`${call}: ${describe(code)}`), { errno: code, syscall: call })
}

/** Moves the calling thread, and nothing else of the process, into the network namespace behind `fd`. */
export function setNetworkNamespace(fd: number) {
  must('setns', c.setns(fd, CLONE_NEWNET))
}

/** A struct sockaddr_in or sockaddr_in6. */
function socketAddress(host: string, port: number): Uint8Array {
  const v6 = host.includes(':')
  const bytes = new Uint8Array(v6 ? 28 : 16)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, v6 ? AF_INET6 : AF_INET, true)
  view.setUint16(2, port)
  if (v6) bytes.set(parse6(host), 8)
  else bytes.set(host.split('.').map(Number), 4)
  return bytes
}

function parse6(text: string): Uint8Array {
  const [head = '', tail] = text.split('::')
  const words = (part: string) => (part ? part.split(':').map((word) => parseInt(word, 16)) : [])
  const left = words(head)
  const right = words(tail ?? '')
  const all = [...left, ...Array<number>(8 - left.length - right.length).fill(0), ...right]
  return Uint8Array.from(all.flatMap((word) => [word >> 8, word & 0xff]))
}

function tcpSocket(host: string): number {
  return must('socket', c.socket(host.includes(':') ? AF_INET6 : AF_INET, SOCK_STREAM_NONBLOCK_CLOEXEC, 0))
}

/** A descriptor must not outlive a failed set-up: nobody would know its number. */
function orClose(fd: number, setUp: () => void): number {
  try {
    setUp()
    return fd
  } catch (error) {
    c.close(fd)
    throw error
  }
}

/** A listening TCP socket; '::' takes both families, as Linux does by default. */
export function listenSocket(host: string, port: number, backlog: number): number {
  const fd = tcpSocket(host)
  const address = socketAddress(host, port)
  return orClose(fd, () => {
    must('setsockopt', c.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, ptr(new Int32Array([1])), 4))
    must('bind', c.bind(fd, ptr(address), address.length))
    must('listen', c.listen(fd, backlog))
  })
}

/** A TCP socket whose connect is on its way. */
export function connectSocket(host: string, port: number, from?: { host: string; port: number }): number {
  const fd = tcpSocket(host)
  const address = socketAddress(host, port)
  return orClose(fd, () => {
    if (from) {
      const local = socketAddress(from.host, from.port)
      must('setsockopt', c.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, ptr(new Int32Array([1])), 4))
      must('bind', c.bind(fd, ptr(local), local.length))
    }
    if (c.connect(fd, ptr(address), address.length) < 0 && errno() !== EINPROGRESS) must('connect', -1)
  })
}

export function localPort(fd: number): number {
  const bytes = new Uint8Array(28)
  must('getsockname', c.getsockname(fd, ptr(bytes), ptr(new Uint32Array([bytes.length]))))
  return new DataView(bytes.buffer).getUint16(2)
}

/** SO_ERROR: why a connect failed; reading it clears it. */
export function pendingError(fd: number): number {
  const out = new Int32Array(1)
  must('getsockopt', c.getsockopt(fd, SOL_SOCKET, SO_ERROR, ptr(out), ptr(new Uint32Array([4]))))
  return out[0]!
}
