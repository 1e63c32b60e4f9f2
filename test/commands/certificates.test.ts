// What the certificate commands print.
import { expect, test } from 'bun:test'
import { certificateTable, inWords } from '../../src/commands/certificates.ts'
import { trustCommands } from '../../src/commands/trust.ts'
import type { CertificateView } from '../../src/certificates/index.ts'

const NOW = Date.parse('2026-01-01T00:00:00Z')
const at = (seconds: number) => new Date(NOW + seconds * 1000).toISOString()

test('F9: times in words', () => {
  const words = [61 * 86_400 + 5, 86_400 * 2, 86_400, 3 * 3600, 119, 1, -40, -3 * 86_400].map((s) =>
    inWords(at(s), NOW),
  )
  expect(words).toEqual([
    ...['in 61 days', 'in 2 days', 'in 24 hours', 'in 3 hours', 'in 119 seconds', 'in 1 second'],
    ...['40 seconds ago', '3 days ago'],
  ])
})

test('F9: sluice certificates', () => {
  const view = (more: Partial<CertificateView>): CertificateView => ({
    ...{ name: 'a.test', names: ['a.test'], routes: ['web'], source: 'file', state: 'valid', keys: ['ECDSA P-256'] },
    ...more,
  })
  const text = certificateTable(
    [
      view({ notAfter: at(61 * 86_400), uncovered: ['b.test'], keys: ['ECDSA P-256', 'RSA 2048'] }),
      view({
        name: 'new.test',
        source: 'auto',
        state: 'pending',
        keys: [],
        nextAttempt: at(300),
        lastError: 'refused',
      }),
    ],
    NOW,
  )
  expect(text.split('\n').map((line) => line.trimEnd().split(/ {2,}/))).toEqual([
    ['NAME', 'SOURCE', 'STATE', 'EXPIRES', 'KEYS', 'NEXT', 'ERROR'],
    ['a.test', 'file', 'valid', 'in 61 days', 'ECDSA P-256, RSA 2048', '-', 'not for b.test'],
    ['new.test', 'auto', 'pending', '-', '-', 'in 5 minutes', 'refused'],
    [''],
  ])
})

test('F2: the commands of trust hold for a state directory with spaces', () => {
  const commands = trustCommands({ path: "/var/lib/it's mine/ca.crt", name: 'sluice local authority 12ab' })
  expect(Object.values(commands).flat()).toContain(
    "sudo install -m 644 '/var/lib/it'\\''s mine/ca.crt' /usr/local/share/ca-certificates/sluice-local-authority-12ab.crt",
  )
  expect(Object.values(commands).flat().join('\n')).toContain("-n 'sluice local authority 12ab'")
})
