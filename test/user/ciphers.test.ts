// Which ciphers TLS takes where it ends: what an old client offers last is not what it gets, and some are not to be had.
import { expect, test } from 'bun:test'
import type { UserTls } from '../../src/plan/types.ts'
import { openssl, signed } from '../certificates/tools.ts'
import { echo, forward, open, route } from './plane.ts'

const terminate: UserTls = {
  mode: 'terminate',
  alpn: [],
  minVersion: 'TLSv1.2',
  clientCa: null,
  upstream: { serverName: null, ca: null, insecure: false },
}

test('F1: TLS 1.2 has forward secrecy and no CBC; the order is ours, but for who has AES in hardware', async () => {
  const bench = await open([route('r', { action: forward(await echo(), { tls: terminate }) })], {
    certificates: { r: await signed(['a.test']) },
  })
  const chosen = async (...offered: string[]) => {
    const { output } = await openssl(
      ...['s_client', '-connect', `127.0.0.1:${bench.port}`, '-tls1_2', '-cipher', offered.join(':')],
    )
    return /Cipher is (\S+)/.exec(output)?.[1]
  }
  const name = (cipher: string) => `ECDHE-ECDSA-${cipher}`
  const [aes128, aes256, chacha] = [name('AES128-GCM-SHA256'), name('AES256-GCM-SHA384'), name('CHACHA20-POLY1305')]
  expect(await chosen(aes256, aes128)).toBe(aes128)
  expect(await chosen(aes128, chacha)).toBe(aes128)
  expect(await chosen(chacha, aes128)).toBe(chacha)
  expect(await chosen(aes256)).toBe(aes256)
  expect(await chosen(name('AES128-SHA'), name('AES128-SHA256'), 'AES128-GCM-SHA256')).toBe('(NONE)')
})
