// The only file that loads native code. It gives the C functions of native/sluice.h their TypeScript signatures and
// turns -errno into GatewayError-free numbers: callers decide what an error means.
import { dlopen, ptr } from 'bun:ffi'
// The compiled program carries the library inside itself and unpacks it; from a checkout this is the path of `make build`.
import library from '../../build/libsluice.so' with { type: 'file' }

const signatures = {
  sluice_socketpair: { args: ['i32', 'ptr'], returns: 'i32' },
  sluice_listen: { args: ['ptr', 'u16', 'i32'], returns: 'i32' },
  sluice_listen_beside: { args: ['ptr', 'u16', 'i32', 'ptr', 'i32'], returns: 'i32' },
  sluice_reserve_udp: { args: ['ptr', 'u16', 'ptr', 'i32'], returns: 'i32' },
  sluice_port: { args: ['i32'], returns: 'i32' },
  sluice_dup: { args: ['i32'], returns: 'i32' },
  sluice_close: { args: ['i32'], returns: 'i32' },
  sluice_flock: { args: ['i32'], returns: 'i32' },
  sluice_descriptors_free: { args: ['i32', 'i32', 'i32'], returns: 'i32' },
  sluice_send_fd: { args: ['i32', 'u32', 'i32'], returns: 'i32' },
  sluice_recv_fd: { args: ['i32', 'ptr'], returns: 'i32' },
  sluice_raise_nofile: { args: [], returns: 'i32' },
  sluice_send_syn: { args: ['i32', 'ptr', 'u16', 'ptr', 'u16'], returns: 'i32' },
  sluice_connect: { args: ['ptr', 'u16'], returns: 'i32' },
  sluice_connect_from: { args: ['ptr', 'u16', 'ptr'], returns: 'i32' },
  sluice_connect_unix: { args: ['ptr'], returns: 'i32' },
  sluice_keepalive: { args: ['i32', 'i32', 'i32', 'i32'], returns: 'i32' },
  sluice_drop_bounding: { args: [], returns: 'i32' },
  sluice_drop_capabilities: { args: [], returns: 'i32' },
  sluice_refuse_calls: { args: [], returns: 'i32' },
  sluice_notify: { args: ['ptr', 'ptr', 'i32'], returns: 'i32' },
  sluice_monotonic_us: { args: [], returns: 'u64' },
  sluice_ct_start: { args: ['i32', 'u32', 'u32', 'ptr', 'i32'], returns: 'i32' },
  sluice_ct_dump: { args: ['u16', 'ptr'], returns: 'i32' },
  sluice_ct_get: { args: ['ptr'], returns: 'i32' },
  sluice_ct_delete: { args: ['ptr'], returns: 'i32' },
  sluice_ct_release_udp: { args: ['ptr', 'i32'], returns: 'i32' },
  sluice_ct_stop: { args: [], returns: 'i32' },
  sluice_relay_start: { args: ['i32'], returns: 'i32' },
  sluice_relay_add: { args: ['u64', 'i32', 'i32', 'ptr', 'u32', 'ptr', 'u32'], returns: 'i32' },
  sluice_relay_close: { args: ['u64', 'i32', 'u32'], returns: 'i32' },
  sluice_relay_stats: { args: ['u64', 'ptr'], returns: 'i32' },
  sluice_relay_keepalive: { args: ['u64', 'i32', 'i32', 'i32'], returns: 'i32' },
  sluice_relay_listen: { args: ['u32', 'i32', 'i32'], returns: 'i32' },
  sluice_relay_unlisten: { args: ['u32'], returns: 'i32' },
  sluice_relay_accept: { args: ['u32', 'i32'], returns: 'i32' },
  sluice_relay_more: { args: ['u64'], returns: 'i32' },
  sluice_relay_dial: { args: ['u64', 'u32', 'ptr', 'u16', 'ptr', 'ptr', 'u32'], returns: 'i32' },
  sluice_relay_take: { args: ['u64'], returns: 'i32' },
  sluice_relay_stop: { args: [], returns: 'i32' },
} as const

/** The C functions, loaded on first use so that pure code never needs the library. */
export const native = (() => {
  let symbols: ReturnType<typeof dlopen<typeof signatures>>['symbols'] | undefined
  return () => (symbols ??= dlopen(library, signatures).symbols)
})()

/** A NUL-terminated copy of `text` for a `const char *` argument. Keep a reference for as long as C may read it. */
export const cString = (text: string) => Buffer.from(text + '\0')
export { ptr }
