// Certificates from a CA that does everything a CA can do wrong, and some things that it does right.
import { afterEach, describe, expect, test } from 'bun:test'
import { X509Certificate } from 'node:crypto'
import { createSecureContext } from 'node:tls'
import { ACME_ASKS_MAX } from '../../src/base/limits.ts'
import { Acme, type AcmeOptions } from '../../src/certificates/acme/index.ts'
import type { CertificateEvent, Challenge } from '../../src/certificates/types.ts'
import { slowness } from '../support.ts'
import { AcmeServer, problem, type Script } from './acme-server.ts'
import { MemoryStore } from './memory-store.ts'
import { signed } from './tools.ts'

const DAY = 86_400_000
const ended: (() => unknown)[] = []
afterEach(async () => {
  for (const end of ended.splice(0).reverse()) await end()
})

async function until(what: string, condition: () => unknown) {
  const deadline = performance.now() + 10_000 * slowness
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`not in time: ${what}`)
    await Bun.sleep(5)
  }
}

function server(script: Script = {}) {
  const ca = new AcmeServer(script)
  ended.push(() => ca[Symbol.dispose]())
  return ca
}

/** A gateway's part of it: what it has placed, what it was told, its clock and its timers. */
function gateway(ca: AcmeServer, store: MemoryStore, more: Partial<AcmeOptions> = {}, settings: object = {}) {
  const placed = new Map<string, Challenge>()
  const events: CertificateEvent[] = []
  const logged: string[] = []
  const clock = { ahead: 0 }
  const timers = new Map<() => void, number>()
  const options: AcmeOptions = {
    settings: {
      ...{ email: 'ops@example.com', directory: ca.directory, ca: null, eab: null, renewBeforeDays: 30 },
      ...settings,
    },
    store,
    offers: () => ['http-01', 'tls-alpn-01'],
    async place(challenge) {
      const key = `${challenge.type} ${challenge.name}`
      placed.set(key, challenge)
      return async () => void placed.delete(key)
    },
    changed: () => {},
    event: (event) => events.push(event),
    log: (_level, message) => logged.push(message),
    now: () => Date.now() + clock.ahead,
    random: () => 0,
    timer: (ms, wake) => {
      timers.set(wake, ms)
      return () => timers.delete(wake)
    },
    ...more,
  }
  const acme = new Acme(options)
  ended.push(() => acme.stop())
  const wake = (ms = 0) => {
    clock.ahead += ms
    for (const [act] of [...timers]) {
      timers.delete(act)
      act()
    }
  }
  return { acme, placed, events, logged, clock, timers, wake }
}

const valid = (acme: Acme, name: string) => until(`${name} is valid`, () => acme.get(name))
const failed = (acme: Acme, name: string) => until(`${name} has failed`, () => acme.status(name).failures > 0)

describe('F4: a certificate is issued', () => {
  test('by each kind of challenge, which stands while the CA looks and not after', async () => {
    const seen: string[] = []
    for (const type of ['http-01', 'tls-alpn-01'] as const) {
      const ca = server({
        sees(name, asked, token) {
          const challenge = placed.get(`${asked} ${name}`)
          if (challenge?.type === 'http-01') seen.push(`${asked} ${challenge.keyAuthorization.startsWith(`${token}.`)}`)
          if (challenge?.type === 'tls-alpn-01') {
            const names = new X509Certificate(challenge.cert).subjectAltName
            // BoringSSL will not sign a handshake with just any certificate.
            createSecureContext(challenge)
            seen.push(`${asked} ${names} ${challenge.key.startsWith('-----BEGIN PRIVATE KEY-----')}`)
          }
          return true
        },
      })
      const store = new MemoryStore()
      const { acme, placed, events } = gateway(ca, store, { offers: () => [type] })
      acme.follow(['a.test'])
      await valid(acme, 'a.test')
      expect(acme.status('a.test')).toMatchObject({ state: 'valid', failures: 0 })
      await until('it is told', () => events.length > 0)
      expect(events).toEqual([
        { name: 'a.test', source: 'auto', what: 'issued', notAfter: acme.get('a.test')!.notAfter },
      ])
      const leaf = new X509Certificate(acme.get('a.test')!.cert)
      expect(leaf.verify(new X509Certificate(await ca.root()).publicKey)).toBe(true)
      await until('the order is forgotten', () => ![...store.entries.keys()].some((key) => key.startsWith('orders/')))
      expect(placed.size).toBe(0)
      expect(store.locks.size).toBe(0)
    }
    expect(seen).toEqual(['http-01 true', 'tls-alpn-01 DNS:a.test true'])
  })

  test('by a directory that only its own root vouches for, and by no other', async () => {
    const tls = await signed(['127.0.0.1'])
    const ca = server({ tls })
    const { acme } = gateway(ca, new MemoryStore(), {}, { ca: tls.cert })
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    const stranger = gateway(ca, new MemoryStore())
    stranger.acme.follow(['a.test'])
    await failed(stranger.acme, 'a.test')
    expect(stranger.acme.status('a.test').lastError).toMatch(/^Cannot reach 127\.0\.0\.1:\d+: .*self.signed/)
  })

  test('although every second nonce is refused', async () => {
    const ca = server({ badNonces: true })
    const { acme } = gateway(ca, new MemoryStore())
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    expect(ca.orders).toHaveLength(1)
  })

  test('for an account that is bound to an external one, and for no other', async () => {
    const eab = { kid: 'kid-1', hmacKey: Buffer.from('a secret of ours').toString('base64url') }
    const ca = server({ eab })
    const store = new MemoryStore()
    const without = gateway(ca, store)
    without.acme.follow(['a.test'])
    await failed(without.acme, 'a.test')
    expect(without.acme.status('a.test').lastError).toContain('who pays for this? (externalAccountRequired)')
    await without.acme.stop()
    const { acme } = gateway(ca, store, {}, { eab })
    void acme.follow(['a.test', 'b.test'])
    await valid(acme, 'b.test')
    expect(ca.accounts).toMatchObject([{ bound: true, contact: ['mailto:ops@example.com'] }])
  })

  test('by an account that is made once, and anew when the CA has lost it', async () => {
    const ca = server()
    const store = new MemoryStore()
    const first = gateway(ca, store)
    first.acme.follow(['a.test', 'b.test'])
    await valid(first.acme, 'a.test')
    await valid(first.acme, 'b.test')
    await first.acme.stop()
    const second = gateway(ca, store)
    second.acme.follow(['c.test'])
    await valid(second.acme, 'c.test')
    expect(ca.accounts).toHaveLength(1)
    ca.accounts.splice(0)
    second.acme.follow(['c.test', 'd.test'])
    await valid(second.acme, 'd.test')
    expect(ca.accounts).toHaveLength(1)
    expect(second.acme.status('d.test').failures).toBe(0)
  })
})

describe('F7: one name delays no other', () => {
  test('twenty-four at a time with one that fails: ten in flight at most, and one order each', async () => {
    const names = Array.from({ length: 24 }, (_, i) => `n${i}.test`)
    const detail = 'no \u001b[31mroute\r\n to\u0000 you'
    const ca = server({
      sees: (name) => name !== 'n3.test' || { type: 'urn:ietf:params:acme:error:connection', detail },
    })
    const { acme, events } = gateway(ca, new MemoryStore())
    acme.follow(names)
    acme.follow(names)
    for (const name of names) await (name === 'n3.test' ? failed : valid)(acme, name)
    for (const name of names) expect(ca.ordersOf(name)).toHaveLength(1)
    expect(ca.inFlightMax).toBe(10)
    expect(ca.accounts).toHaveLength(1)
    const { state, failures, lastError, nextAttemptAt } = acme.status('n3.test')
    expect({ state, failures }).toEqual({ state: 'failed', failures: 1 })
    expect(lastError).toBe('The CA could not see that n3.test is ours, by http-01: no [31mroute to you (connection)')
    expect(Date.parse(nextAttemptAt!)).toBeGreaterThan(Date.now() + 50_000)
    const failure = events.find(({ what }) => what === 'failed')
    expect(failure).toEqual({
      name: 'n3.test',
      source: 'auto',
      what: 'failed',
      error: lastError!,
      nextAttemptAt: nextAttemptAt!,
    })
  }, 20_000)

  test('the next attempt is the other challenge, later, and survives a restart', async () => {
    const asked: string[] = []
    const ca = server({
      sees(_name, type) {
        asked.push(type)
        return type === 'tls-alpn-01' || { type: 'urn:ietf:params:acme:error:connection', detail: 'refused' }
      },
    })
    const store = new MemoryStore()
    const first = gateway(ca, store)
    first.acme.follow(['a.test'])
    await failed(first.acme, 'a.test')
    await until('the failure is kept', () => [...store.entries.keys()].some((key) => key.startsWith('attempts/')))
    await first.acme.stop()
    const second = gateway(ca, store)
    second.acme.follow(['a.test'])
    await until('it waits', () => second.timers.size)
    expect(second.acme.status('a.test')).toEqual({ state: 'failed', ...store.json('attempts/') })
    expect(second.acme.status('a.test').lastError).toContain('refused (connection)')
    expect(ca.orders).toHaveLength(1)
    second.wake(61_000)
    await valid(second.acme, 'a.test')
    expect(asked).toEqual(['http-01', 'tls-alpn-01'])
  })

  test('a CA that limits is asked when it says', async () => {
    const ca = server({
      instead: (asked) =>
        asked === 'POST /order' ? problem(429, 'rateLimited', 'too many', { 'retry-after': '7200' }) : undefined,
    })
    const { acme, timers, wake } = gateway(ca, new MemoryStore())
    acme.follow(['a.test'])
    await failed(acme, 'a.test')
    await until('it waits', () => timers.size)
    const { lastError, nextAttemptAt } = acme.status('a.test')
    expect(lastError).toContain('too many (rateLimited)')
    expect((Date.parse(nextAttemptAt!) - Date.now()) / 60_000).toBeCloseTo(120, 0)
    // Only to look at the clock.
    wake([...timers.values()][0])
    await until('it waits again', () => timers.size)
    expect(ca.count('POST /order')).toBe(1)
    wake(61 * 60_000)
    await until('it is asked again', () => ca.count('POST /order') === 2)
  })

  test('a CA that stumbles is asked once more, and no failure comes of it', async () => {
    const stumbles = ['POST /order', 'POST /finalize/0', 'POST /certificate/0']
    const ca = server({
      instead: (asked, times) =>
        times === 1 && stumbles.includes(asked) ? problem(500, 'serverInternal', 'both at once') : undefined,
    })
    const { acme, events } = gateway(ca, new MemoryStore())
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    expect(events.map(({ what }) => what)).toEqual(['issued'])
    expect(ca.count('POST /order')).toBe(2)
  })

  test('a CA that does not make up its mind, or does not answer, is given up', async () => {
    const undecided = server({ sees: () => 'never' })
    const first = gateway(undecided, new MemoryStore(), { orderMs: 600 })
    first.acme.follow(['a.test'])
    const mute = server({
      instead: (asked) => (asked === 'POST /order' ? Bun.sleep(5000).then(() => new Response()) : undefined),
    })
    const second = gateway(mute, new MemoryStore(), { requestMs: 200 })
    second.acme.follow(['a.test'])
    await failed(first.acme, 'a.test')
    await failed(second.acme, 'a.test')
    expect(first.acme.status('a.test').lastError).toBe(
      'The CA has not decided about the challenge http-01 within 0.6 s',
    )
    expect(first.placed.size).toBe(0)
    expect(second.acme.status('a.test').lastError).toMatch(/^Cannot reach 127\.0\.0\.1:\d+: no answer within 0\.2 s$/)
  })

  test('a CA behind TLS is followed elsewhere, a few times, and asked nothing in the clear', async () => {
    const tls = await signed(['127.0.0.1'])
    const to = (location: string) => new Response(null, { status: 302, headers: { location } })
    const clear = 'http://127.0.0.1:9/'
    const answers: Record<string, (times: number) => Response | undefined> = {
      elsewhere: (times) => (times === 1 ? to('/directory') : undefined),
      'in circles': () => to('/directory'),
      'in the clear': () => to(clear),
      nowhere: () => to('http://['),
      'with such addresses': () => Response.json({ newNonce: clear, newAccount: clear, newOrder: clear }),
    }
    const errors = await Promise.all(
      Object.entries(answers).map(async ([kind, answer]) => {
        const ca = server({ tls, instead: (asked, times) => (asked === 'GET /directory' ? answer(times) : undefined) })
        const { acme } = gateway(ca, new MemoryStore(), {}, { ca: tls.cert })
        acme.follow(['a.test'])
        await until('it is decided', () => acme.get('a.test') ?? acme.status('a.test').lastError)
        return [kind, acme.status('a.test').lastError?.replace(/:\d+/, '') ?? 'issued'] as const
      }),
    )
    expect(Object.fromEntries(errors)).toEqual({
      elsewhere: 'issued',
      'in circles': '127.0.0.1 answered with status 302',
      'in the clear': 'The CA names an address without TLS: http://127.0.0.1/',
      nowhere: 'The CA names an address without TLS: http://[',
      'with such addresses': 'The CA names an address without TLS: http://127.0.0.1/',
    })
  })

  test('answers that make no sense are failures like others', async () => {
    const json = (body: string) =>
      new Response(body, { status: 201, headers: { 'content-type': 'application/json', location: 'x' } })
    const answers: Record<string, [string, () => Response]> = {
      text: ['POST /order', () => new Response('hello', { status: 201, headers: { location: 'x' } })],
      null: ['POST /order', () => json('null')],
      empty: ['POST /order', () => json('{}')],
      cut: ['POST /order', () => json('{"status":"pend')],
      'no location': ['POST /order', () => new Response('{}', { status: 201 })],
      authorization: ['POST /authz/0', () => new Response('[]', { headers: { 'content-type': 'application/json' } })],
      certificate: [
        'POST /certificate/0',
        () => new Response('-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----'),
      ],
      'no certificate': ['POST /certificate/0', () => new Response('<html>')],
      huge: ['GET /directory', () => new Response('x'.repeat(1_000_000))],
      directory: ['GET /directory', () => new Response('<html>', { headers: { 'content-type': 'text/html' } })],
      'server error': ['POST /order', () => new Response('<html>', { status: 502 })],
    }
    const errors = await Promise.all(
      Object.entries(answers).map(async ([kind, [path, answer]]) => {
        const ca = server({ instead: (asked) => (asked === path ? answer() : undefined) })
        const { acme } = gateway(ca, new MemoryStore())
        acme.follow(['a.test'])
        await failed(acme, 'a.test')
        return [kind, acme.status('a.test').lastError!.replace(/:\d+/, '')] as const
      }),
    )
    expect(Object.fromEntries(errors)).toMatchInlineSnapshot(`
      {
        "authorization": "The CA's answer makes no sense",
        "certificate": "The CA issued a certificate that cannot be used: it is damaged",
        "cut": "The CA's answer makes no sense",
        "directory": "Unable to locate API resource URL in ACME directory: "newAccount"",
        "empty": "The CA's answer makes no sense",
        "huge": "The CA's answer is longer than 256 KiB",
        "no certificate": "The CA issued a certificate that cannot be used: no PEM certificate",
        "no location": "Creating a new order did not return an order link",
        "null": "The CA's answer makes no sense",
        "server error": "127.0.0.1 answered with status 502",
        "text": "The CA's answer makes no sense",
      }
    `)
  })

  test('what is issued for another name is not used', async () => {
    const { acme } = gateway(server({ wrongName: 'b.test' }), new MemoryStore())
    acme.follow(['a.test'])
    await failed(acme, 'a.test')
    expect(acme.status('a.test').lastError).toBe('The CA issued a certificate that cannot be used: it is for b.test')
  })

  test('a chain with a stranger in it is served without', async () => {
    const stranger = (await signed(['x.test'])).cert
    const ca = server({ stranger })
    const { acme } = gateway(ca, new MemoryStore())
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    const { cert } = acme.get('a.test')!
    const [leaf, issuer, ...rest] = cert.match(/-----BEGIN[^]+?-----END CERTIFICATE-----/g)!
    expect(new X509Certificate(leaf!).checkHost('a.test')).toBe('a.test')
    expect([issuer, rest]).toEqual([new X509Certificate(await ca.root()).toString().trim(), []])
  })

  test('nor what has ended by the clock of this machine', async () => {
    const { acme } = gateway(server({ lifetimeMs: 1000, now: () => Date.now() - DAY }), new MemoryStore())
    acme.follow(['a.test'])
    await failed(acme, 'a.test')
    expect(acme.status('a.test').lastError).toMatch(/it ended at .*, and this machine's clock says /)
  })

  test('without a port that could answer nothing is asked of the CA', async () => {
    const ca = server()
    const { acme } = gateway(ca, new MemoryStore(), { offers: () => [] })
    acme.follow(['a.test'])
    await failed(acme, 'a.test')
    expect(acme.status('a.test').lastError).toBe('No port of this gateway can answer a challenge of the CA')
    expect(ca.requests).toEqual([])
  })
})

describe('F7: several gateways, restarts and stops', () => {
  test('two gateways on one store: one order each name, one account, and both have the certificates', async () => {
    const ca = server()
    const store = new MemoryStore()
    const [one, two] = [gateway(ca, store), gateway(ca, store)]
    const names = ['a.test', 'b.test', 'c.test']
    for (const { acme } of [one, two]) acme.follow(names)
    for (const { acme } of [one, two]) for (const name of names) await valid(acme, name)
    expect(ca.orders).toHaveLength(3)
    expect(ca.accounts).toHaveLength(1)
    for (const name of names) expect(one.acme.get(name)!.cert).toBe(two.acme.get(name)!.cert)
    expect([...one.events, ...two.events].filter(({ what }) => what === 'issued')).toHaveLength(3)
  })

  test('a stop in the middle of an order is quick, and the next start takes the order up', async () => {
    let decided = false
    const ca = server({ sees: () => (decided ? true : 'never') })
    const store = new MemoryStore()
    const first = gateway(ca, store)
    first.acme.follow(['a.test'])
    await until('the challenge stands', () => ca.requests.includes('POST /challenge/0/http-01'))
    const renewed = first.acme.renew('a.test').catch((error) => error.message)
    await first.acme.stop()
    expect(await renewed).toBe('The certificate of a.test is not wanted any more')
    expect(first.placed.size).toBe(0)
    expect(store.locks.size).toBe(0)
    expect(first.events).toEqual([])
    decided = true
    // The CA has seen the challenge while nobody was there.
    Object.assign(ca.orders[0]!, { status: 'ready', authorized: 'valid' })
    const second = gateway(ca, store)
    second.acme.follow(['a.test'])
    await valid(second.acme, 'a.test')
    expect(ca.orders).toHaveLength(1)
    const third = gateway(ca, store)
    third.acme.follow(['a.test'])
    await valid(third.acme, 'a.test')
    expect(third.acme.get('a.test')!.cert).toBe(second.acme.get('a.test')!.cert)
    expect(ca.orders).toHaveLength(1)
  })

  test('a certificate that was ready when the gateway ended is fetched, not asked for again', async () => {
    const ca = server({
      instead: (asked, times) =>
        asked === 'POST /certificate/0' && times <= ACME_ASKS_MAX ? new Response('', { status: 500 }) : undefined,
    })
    const store = new MemoryStore()
    const first = gateway(ca, store)
    first.acme.follow(['a.test'])
    await failed(first.acme, 'a.test')
    expect(first.acme.status('a.test').lastError).toContain('answered with status 500')
    first.wake(61_000)
    await valid(first.acme, 'a.test')
    expect(ca.orders).toHaveLength(1)
  })

  test('an order that the CA has lost is begun again', async () => {
    const ca = server({ sees: () => 'never' })
    const store = new MemoryStore()
    const first = gateway(ca, store, { orderMs: 500 })
    first.acme.follow(['a.test'])
    await failed(first.acme, 'a.test')
    expect([...store.entries.keys()].filter((key) => key.startsWith('orders/'))).toHaveLength(1)
    ca.script = {}
    ca.orders[0]!.status = 'invalid'
    first.wake(61_000)
    await valid(first.acme, 'a.test')
    expect(ca.orders).toHaveLength(2)
  })

  test('a name that is not wanted any more is left alone', async () => {
    const ca = server({ sees: () => 'never' })
    const { acme, placed, events, timers } = gateway(ca, new MemoryStore())
    acme.follow(['a.test'])
    await until('the challenge stands', () => placed.size)
    acme.follow([])
    await until('it is taken away', () => placed.size === 0)
    expect(acme.get('a.test')).toBeUndefined()
    await expect(acme.renew('a.test')).rejects.toThrow('No automatic certificate is kept for a.test')
    await acme.stop()
    expect(events).toEqual([])
    expect(timers.size).toBe(0)
  })

  test('what the store has can be loaded before the CA may be asked anything', async () => {
    const ca = server()
    const store = new MemoryStore()
    const first = gateway(ca, store)
    first.acme.follow(['a.test'])
    await valid(first.acme, 'a.test')
    await first.acme.stop()
    const asked = ca.requests.length
    const second = gateway(ca, store)
    await second.acme.load(['a.test', 'b.test'])
    expect(second.acme.get('a.test')!.cert).toBe(store.json('certificates/').cert)
    expect(second.acme.status('a.test').state).toBe('valid')
    expect(second.acme.status('b.test').state).toBe('pending')
    expect(second.timers.size).toBe(0)
    expect(ca.requests).toHaveLength(asked)
    second.acme.follow(['b.test'])
    await valid(second.acme, 'b.test')
    expect(second.acme.get('a.test')).toBeUndefined()
    store.away = true
    const third = gateway(ca, store)
    await third.acme.load(['a.test'])
    expect(third.acme.get('a.test')).toBeUndefined()
  })

  test('a failure that cannot be kept is not repeated at once', async () => {
    const ca = server({ sees: () => ({ type: 'urn:ietf:params:acme:error:connection', detail: 'refused' }) })
    const store = new MemoryStore()
    store.full = 'attempts/'
    const { acme, wake, timers } = gateway(ca, store)
    acme.follow(['a.test'])
    await failed(acme, 'a.test')
    for (let i = 0; i < 3; i++) {
      await until('it waits for the store', () => [...timers.values()].includes(30_000))
      wake(10_000)
    }
    await until('it waits for the store', () => [...timers.values()].includes(30_000))
    expect(ca.orders).toHaveLength(1)
    store.full = undefined
    wake(0)
    await until('the failure is kept', () => [...store.entries.keys()].some((key) => key.startsWith('attempts/')))
    expect(acme.status('a.test').failures).toBe(1)
  })

  test('a certificate that cannot be kept is served, and kept later', async () => {
    const ca = server()
    const store = new MemoryStore()
    store.full = 'certificates/'
    const { acme, wake, timers } = gateway(ca, store)
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    await until('it waits for the store', () => [...timers.values()].includes(30_000))
    // What it was made of stays until then.
    expect(store.json('orders/').key).toBe(acme.get('a.test')!.key)
    store.full = undefined
    wake(30_000)
    await until('it is kept', () => [...store.entries.keys()].some((key) => key.startsWith('certificates/')))
    expect(store.json('certificates/').cert).toBe(acme.get('a.test')!.cert)
    expect(ca.orders).toHaveLength(1)
  })

  test('an order ends with its lock, and is no failure', async () => {
    const ca = server({ sees: () => 'never' })
    const store = new MemoryStore()
    const { acme, placed, timers, events } = gateway(ca, store)
    acme.follow(['a.test'])
    await until('the challenge stands', () => placed.size)
    store.losing.abort(new Error('the lock is lost'))
    await until('it waits for the store', () => [...timers.values()].includes(30_000))
    expect(placed.size).toBe(0)
    expect(acme.status('a.test')).toMatchObject({ state: 'pending', failures: 0 })
    expect(events).toEqual([])
  })

  test('while the store is away nothing is asked of the CA, and what is held is served', async () => {
    const ca = server()
    const store = new MemoryStore()
    const { acme, wake, timers } = gateway(ca, store)
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    await until('it waits', () => timers.size)
    store.away = true
    wake(70 * DAY)
    await until('it waits for the store', () => [...timers.values()].includes(30_000))
    // Why nothing is done although it is due.
    expect(acme.status('a.test')).toMatchObject({ state: 'valid', lastError: expect.stringContaining('away') })
    expect(ca.orders).toHaveLength(1)
    store.away = false
    wake(30_000)
    await until('it is renewed', () => ca.orders.length === 2)
    await until('that is over', () => acme.status('a.test').lastError === undefined)
  })
})

describe('F9: a certificate is renewed', () => {
  test('when its time has come, while the old one goes on, also when the CA is down', async () => {
    const clock = { now: Date.now() }
    const ca = server({ now: () => clock.now })
    const store = new MemoryStore()
    const { acme, events, wake, timers } = gateway(ca, store, { now: () => clock.now })
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    await until('it waits', () => timers.size)
    const old = acme.get('a.test')!
    // Never longer than a day, however far away it is.
    clock.now += 1000
    wake()
    await until('it waits', () => timers.size)
    expect([...timers.values()][0]!).toBeLessThanOrEqual(DAY)
    expect(Date.parse(acme.status('a.test').renewAt!) - Date.parse(old.notBefore)).toBe(60 * DAY)
    ca.script.instead = () => problem(503, 'serverInternal', 'down')
    clock.now += 60 * DAY
    wake()
    await failed(acme, 'a.test')
    expect(acme.status('a.test')).toMatchObject({ state: 'valid', notAfter: old.notAfter })
    expect(acme.get('a.test')).toBe(old)
    clock.now += 22 * DAY
    await until('it waits', () => timers.size)
    wake()
    await until('the end is told, and it has failed again', () => events.length === 4)
    ca.script.instead = () => undefined
    clock.now += DAY
    await until('it waits', () => timers.size)
    wake()
    await until('it is renewed', () => acme.get('a.test') !== old)
    expect(events.map(({ what }) => what)).toEqual(['issued', 'failed', 'expiring', 'failed', 'renewed'])
    expect(acme.get('a.test')!.key).not.toBe(old.key)
    expect(acme.status('a.test')).toMatchObject({ state: 'valid', failures: 0 })
  })

  test('when the CA says so, by its own name for it; and not when the CA says later', async () => {
    const asked = new Set<string>()
    let questions = 0
    const past = { start: '2020-01-01T00:00:00Z', end: '2020-01-02T00:00:00Z' }
    const later = new Date(Date.now() + 40 * DAY).toISOString()
    const latest = new Date(Date.now() + 41 * DAY).toISOString()
    let window = { start: later, end: latest }
    const ca = server({
      renewal(id) {
        asked.add(id)
        questions++
        return window
      },
    })
    const { acme, wake, timers } = gateway(ca, new MemoryStore())
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    await until('the CA was asked', () => questions === 1)
    await until('it waits', () => timers.size)
    wake(2 * DAY)
    await until('the CA was asked again', () => questions === 2)
    await until('it waits', () => timers.size)
    expect(acme.status('a.test').renewAt).toBe(later)
    // As often as it wants to be asked.
    wake(0.24 * DAY)
    await until('it waits again', () => timers.size)
    expect([questions, asked.size]).toEqual([2, 1])
    expect(ca.orders).toHaveLength(1)
    window = past
    wake(0.02 * DAY)
    await until('it is renewed', () => ca.orders.length === 2)
    expect(ca.orders[1]!.replaces).toBe([...asked][0])
    await until('it waits', () => timers.size)
    // The CA has the same wish for the new one: not at once again.
    wake(2000)
    await until('the CA was asked', () => asked.size === 2)
    await until('it waits', () => timers.size)
    expect(ca.orders).toHaveLength(2)
  })

  test('although the CA is away when it is asked about renewals: one question for all of them', async () => {
    const ca = server()
    const store = new MemoryStore()
    const names = Array.from({ length: 15 }, (_, i) => `n${i}.test`)
    const first = gateway(ca, store)
    first.acme.follow(names)
    for (const name of names) await valid(first.acme, name)
    await first.acme.stop()
    let asked = 0
    ca.script.instead = () => {
      asked++
      return Bun.sleep(5000).then(() => new Response())
    }
    const second = gateway(ca, store, { requestMs: 150 })
    second.acme.follow(names)
    await until('all of them wait', () => second.timers.size === names.length)
    expect(asked).toBe(1)
    for (const name of names) expect(second.acme.status(name)).toMatchObject({ state: 'valid', failures: 0 })
  })

  test('by hand, whatever the schedule, and once for all who ask', async () => {
    const ca = server()
    const { acme, events, timers } = gateway(ca, new MemoryStore())
    acme.follow(['a.test'])
    await valid(acme, 'a.test')
    await until('it waits', () => timers.size)
    const [one, two] = await Promise.all([acme.renew('a.test'), acme.renew('a.test')])
    expect(one.cert).toBe(two.cert)
    expect(ca.orders).toHaveLength(2)
    expect(events.map(({ what }) => what)).toEqual(['issued', 'renewed'])
    ca.script.instead = (asked) => (asked === 'POST /order' ? problem(403, 'rejectedIdentifier', 'not you') : undefined)
    await expect(acme.renew('a.test')).rejects.toThrow('not you (rejectedIdentifier)')
    expect(acme.status('a.test')).toMatchObject({ state: 'valid', failures: 1 })
  })

  test('by another gateway: the result is taken over', async () => {
    const ca = server()
    const store = new MemoryStore()
    const [one, two] = [gateway(ca, store), gateway(ca, store)]
    one.acme.follow(['a.test'])
    await valid(one.acme, 'a.test')
    two.acme.follow(['a.test'])
    await valid(two.acme, 'a.test')
    const { cert } = await one.acme.renew('a.test')
    await until('the other has it', () => two.acme.get('a.test')!.cert === cert)
    expect(two.events.map(({ what }) => what)).toEqual(['replaced'])
    expect(ca.orders).toHaveLength(2)
  })
})
