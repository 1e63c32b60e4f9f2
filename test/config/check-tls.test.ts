// F2, F3: what automatic certificates, modules and stores need of a configuration, refused by path, all at once.
import { describe, expect, test } from 'bun:test'
import { check } from '../../src/config/check.ts'

const acme = { email: 'ops@example.com', termsAgreed: true }
const secure = (name: string, domains: unknown, tls: object = {}, ports: unknown = 443, more: object = {}) => ({
  name,
  match: { ports, ...(domains === undefined ? {} : { domains }) },
  action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 80 }], tls: { mode: 'terminate', ...tls } },
  ...more,
})
const plain = (name: string, ports: unknown, action: object) => ({
  name,
  match: { ports },
  action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 80 }], ...action },
})
const auto = { certificate: 'auto' }
const module = { certificate: { module: './certificates.ts' } }

const paths = (input: object) => {
  const checked = check(input)
  return checked.ok ? [] : checked.problems.map(({ path }) => path).toSorted()
}

describe('automatic certificates', () => {
  test.each<[string, object]>([
    ['by name', { acme, routes: [secure('a', ['a.test', 'b.example.com'], auto)] }],
    ['by default, without the field', { acme, routes: [secure('a', 'a.test')] }],
    ['a name without a dot, of an internal CA', { acme, routes: [secure('a', 'gateway', auto)] }],
    ['a module for a wildcard', { acme, routes: [secure('a', '*.example.com', module)] }],
    ['a module without acme', { routes: [secure('a', '*.example.com', module)] }],
    ['acme that nobody needs', { acme, routes: [plain('a', 80, {})] }],
    ['a plain route on the challenge port', { acme, routes: [secure('a', 'a.test'), plain('p', 80, {})] }],
    ['all of it', { acme: { ...acme, directory: 'https://ca.internal/dir', ca: 'ca.pem', challengePort: 8080, renewBeforeDays: 10, eab: { kid: 'k', hmacKey: 'AbC-_09' } }, routes: [] }],
    ['the stores', { routes: [], store: 'file' }],
    ['redis', { routes: [], store: 'redis://user:secret@10.0.0.5:6379/2' }],
    ['redis over TLS', { routes: [], store: 'rediss://redis.internal' }],
    ['the kernel on the challenge port, where nobody needs it', { acme, routes: [secure('a', 'a.test'), plain('p', 80, { forwardingEngine: 'nftables' })] }],
    ['the kernel on another port', { acme, routes: [secure('a', 'a.test', {}, 8443), plain('p', 81, { forwardingEngine: 'nftables' })] }],
    ['a route without acme that is not enabled', { routes: [secure('a', 'a.test', auto, 443, { enabled: false })] }],
  ])('F3: taken: %s', (_what, input) => expect(check(input)).toMatchObject({ ok: true })) // prettier-ignore

  test.each<[string, object, string[]]>([
    ['auto without acme', { routes: [secure('a', 'a.test', auto), secure('b', 'b.test')] }, ['routes[0].action.tls.certificate', 'routes[1].action.tls.certificate']],
    ['terms not agreed to', { acme: { ...acme, termsAgreed: false }, routes: [] }, ['acme.termsAgreed']],
    ['no email', { acme: { termsAgreed: true }, routes: [] }, ['acme.email']],
    ['no names', { acme, routes: [secure('a', undefined)] }, ['routes[0].match.domains']],
    ['every pattern by itself', { acme, routes: [secure('a', ['ok.test', '*.a.test', 'b.*', '*'], auto), secure('b', '*')] }, ['routes[0].match.domains[1]', 'routes[0].match.domains[2]', 'routes[0].match.domains[3]', 'routes[1].match.domains']],
    ['an address', { acme, routes: [secure('a', '10.0.0.1', auto)] }, ['routes[0].match.domains']],
    ['a module without names', { acme, routes: [secure('a', undefined, module)] }, ['routes[0].match.domains']],
    ['a directory in the clear', { acme: { ...acme, directory: 'http://ca.test/dir' }, routes: [] }, ['acme.directory']],
    ['no directory at all', { acme: { ...acme, directory: 'letsencrypt' }, routes: [] }, ['acme.directory']],
    ['a key that is no base64url', { acme: { ...acme, eab: { kid: 'k', hmacKey: 'a+b/' } }, routes: [] }, ['acme.eab.hmacKey']],
    ['no such port', { acme: { ...acme, challengePort: 0 }, routes: [] }, ['acme.challengePort']],
    ['no such store', { routes: [], store: 'memcached://x' }, ['store']],
    ['a store without a host', { routes: [], store: 'redis://' }, ['store']],
    ['H15: the kernel on the challenge port', { acme, routes: [secure('a', 'a.test', auto, 8443), plain('p', [{ from: 1, to: 100 }], { forwardingEngine: 'nftables' })] }, ['routes[1].action.forwardingEngine']],
    ["H15: the client's address on the challenge port", { acme: { ...acme, challengePort: 8080 }, routes: [secure('a', '*.a.test', module, 8443), plain('p', 8080, { preserveSourceIp: true })] }, ['routes[1].action.preserveSourceIp']],
    ['everything at once', { acme: { ...acme, termsAgreed: false, directory: 'http://x/' }, store: 'x', routes: [secure('a', '*.a.test')] }, ['acme.directory', 'acme.termsAgreed', 'routes[0].match.domains', 'store']],
  ])('F3/E14: refused: %s', (_what, input, expected) => expect(paths(input)).toEqual(expected)) // prettier-ignore

  test('F3: a wildcard is refused with its reason, before a CA is asked anything', () => {
    const checked = check({ acme, routes: [secure('a', '*.a.test', auto)] })
    expect(checked.ok ? '' : checked.problems[0]!.message).toContain('wildcard names need DNS-01, which is not offered')
  })
})
