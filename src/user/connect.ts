// Begins a connection to a target: a descriptor of our own from the first moment, so that giving up takes the SYN back.
import { cString, native, ptr } from '../base/native.ts'
import { endHandlers, type End } from './end.ts'

/** connected: now. connecting: `drained` or `closed` of the end's consumer will tell. Else the code of what went wrong. */
export type Began = 'connected' | 'connecting' | { error: string | undefined }

/** @param path of a unix socket, instead of address and port. */
export function connectEnd(end: End, address: string | undefined, port: number, path?: string): Began {
  const fd =
    path === undefined
      ? native().sluice_connect(ptr(cString(address!)), port)
      : native().sluice_connect_unix(ptr(cString(path)))
  if (fd < 0) return { error: errnoCode(-fd) }
  // `open` came during the call: connected already (unix, loopback), or `drain` will tell.
  if (!adopt(end, fd)) return { error: 'ENOBUFS' }
  return path !== undefined || isConnected(end) ? 'connected' : 'connecting'
}

/** Gives an end a socket of Bun's for a descriptor, which is Bun's from then on. */
export function adopt(end: End, fd: number): boolean {
  // Its promise says nothing that the handlers do not.
  Bun.connect({ fd, allowHalfOpen: true, data: end, socket: handlers }).catch(ignore)
  return end.socket !== null
}

export const isConnected = (end: End) => end.socket!.remotePort !== undefined

const ignore = () => {}

const handlers = {
  ...endHandlers,
  open(socket: NonNullable<End['socket']>) {
    socket.data.socket = socket
  },
}

/** What connect(2) can answer at once (asm-generic/errno.h). */
const ERRNO: Record<number, string> = {
  2: 'ENOENT',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  23: 'ENFILE',
  24: 'EMFILE',
  99: 'EADDRNOTAVAIL',
  101: 'ENETUNREACH',
  104: 'ECONNRESET',
  105: 'ENOBUFS',
  110: 'ETIMEDOUT',
  111: 'ECONNREFUSED',
  113: 'EHOSTUNREACH',
}

export const errnoCode = (errno: number): string | undefined => ERRNO[errno]

/** What this machine lacks is nothing against the target. */
const OURS = new Set<string | undefined>(['ENOMEM', 'ENFILE', 'EMFILE', 'EADDRNOTAVAIL', 'ENOBUFS'])
export const isOurs = (code: string | undefined) => OURS.has(code)
