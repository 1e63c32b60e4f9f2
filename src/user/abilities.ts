// What the user plane needs of the runtime and no documentation promises (src/bun.d.ts). Looked at once when a worker
// starts: a runtime without one of them is named then, not found out by a client.
import { native, ptr } from '../base/native.ts'

const SOCK_STREAM = 1
const NEEDED = ['upgradeTLS', 'pause', 'resume', 'shutdown', 'terminate'] as const

/** The abilities that this runtime lacks. */
export async function missingAbilities(): Promise<string[]> {
  const pair = new Int32Array(2)
  if (native().sluice_socketpair(SOCK_STREAM, ptr(pair)) < 0) return ['a pair of unix sockets']
  const [ours, other] = [pair[0]!, pair[1]!]
  const missing: string[] = []
  const handlers = { data() {}, error() {} }
  const adopted = await Bun.connect({
    fd: ours,
    socket: handlers,
  } as unknown as Bun.UnixSocketOptions<undefined>).catch(() => null)
  if (!adopted) missing.push('Bun.connect({ fd })')
  else {
    const socket = adopted as unknown as Record<string, unknown>
    if (socket.fd !== ours) missing.push('socket.fd')
    for (const name of NEEDED) if (typeof socket[name] !== 'function') missing.push(`socket.${name}()`)
    adopted.terminate()
  }
  native().sluice_close(other)
  return missing
}
