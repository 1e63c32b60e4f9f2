// Certificates from modules: in the front door with calls that are made up, and in real processes; and ACME as the front door
// sees it, with one that is made up.
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import type { Automatic, AcmeHooks, CertificateSpec, Provide, StoredCertificate } from '../../src/certificates/index.ts'
import { atOnce } from '../../src/certificates/queue.ts'
import { provide } from '../../src/control/provide.ts'
import { authority } from '../user/authority.ts'
import { frontDoor, until } from './front-door.ts'
import { temporaryDirectory } from './tools.ts'

const DAY_MS = 86_400_000
const ca = await authority('modules')
let directory: Awaited<ReturnType<typeof temporaryDirectory>>
beforeAll(async () => {
  directory = await temporaryDirectory()
  await Bun.write(at('any.ts'), 'export default () => "acme"\n')
})
afterAll(() => directory[Symbol.asyncDispose]())
const at = (name: string) => join(directory.path, name)
const never = new AbortController().signal

const spec = (...names: string[]): CertificateSpec => ({ route: 'web', names, certificate: { module: at('any.ts') } })

/** ACME that issues when the test says so. */
function fakeAcme() {
  const held = new Map<string, StoredCertificate>()
  const followed: string[][] = []
  let hooks: AcmeHooks | undefined
  const acme: Automatic = {
    load: async () => {},
    follow: (names) => void followed.push(names),
    get: (name) => held.get(name),
    status: (name) => ({
      state: held.has(name) ? 'valid' : 'pending',
      failures: 0,
      renewAt: '2030-01-01T00:00:00.000Z',
    }),
    renew: (name) => issue(name),
    stop: async () => void followed.push(['stopped']),
  }
  const issue = async (name: string) => {
    const { cert, key } = await ca.issue([name])
    held.set(name, { cert, key, issuedAt: '', notBefore: '', notAfter: '', jitter: 0 })
    hooks!.changed(name)
  }
  const openAcme = (given: AcmeHooks) => {
    hooks = given
    return acme
  }
  return { openAcme, issue, followed }
}

describe('automatic ones', () => {
  test('F4: names of all routes are told at once, and again only when they are others', async () => {
    const { openAcme, issue, followed } = fakeAcme()
    await using front = frontDoor(at('state'), { openAcme })
    const route = (name: string, ...names: string[]): CertificateSpec => ({ route: name, names, certificate: 'auto' })
    const specs = [route('one', 'a.test', 'b.test'), route('two', 'b.test')]
    expect((await front.certificates.prepare(specs)).problems).toEqual([])
    expect(followed).toEqual([])
    front.certificates.follow(specs)
    front.certificates.follow(specs)
    expect(followed).toEqual([['a.test', 'b.test']])
    expect(front.certificates.of(specs[0]!)).toEqual({ perName: true, list: [] })
    expect(front.certificates.views().map(({ name, state, routes }) => [name, state, routes])).toEqual([
      ['a.test', 'pending', ['one']],
      ['b.test', 'pending', ['one', 'two']],
    ])
    await issue('b.test')
    await issue('b.test')
    await until(() => front.changed.length > 0, 'the routes are told, once')
    expect(front.changed).toEqual([['one', 'two']])
    expect(front.certificates.of(specs[0]!).list.map(({ names }) => names)).toEqual([['b.test']])
    expect(await front.certificates.renew('b.test')).toMatchObject({ ok: true, certificates: [{ state: 'valid' }] })
    front.certificates.follow([specs[1]!])
    expect(followed.at(-1)).toEqual(['b.test'])
    // The last route has gone: ACME is told that nothing is wanted.
    front.certificates.follow([])
    expect(followed.at(-1)).toEqual([])
    await front.certificates.stop()
    expect(followed.at(-1)).toEqual(['stopped'])
  })

  test('F3: wildcards are refused before anything is asked', async () => {
    const { openAcme, followed } = fakeAcme()
    await using front = frontDoor(at('state'), { openAcme })
    const { problems } = await front.certificates.prepare([{ route: 'w', names: ['*.a.test'], certificate: 'auto' }])
    expect(problems).toEqual([
      { route: 'w', message: 'Cannot issue a certificate for *.a.test: DNS-01 is not offered' },
    ])
    expect(followed).toEqual([])
  })
})

describe('a module', () => {
  test('F7, F9: is asked by name; one name that fails or hangs delays no other, and is asked again later', async () => {
    let now = Date.now()
    const asked: string[] = []
    const stopped: string[] = []
    const answers: Record<string, () => ReturnType<Provide>> = {
      'good.test': () => ca.issue(['good.test']),
      'bad.test': () => Promise.reject(new Error('the vault is sealed')),
      'odd.test': async () => ({ cert: 'no PEM', key: 'neither' }),
      'slow.test': () => new Promise(() => {}),
    }
    await using front = frontDoor(at('state'), {
      now: () => now,
      provide: (_module, name, signal) => {
        asked.push(name)
        signal.addEventListener('abort', () => stopped.push(name))
        return answers[name]!()
      },
    })
    const all = spec(...Object.keys(answers))
    expect((await front.certificates.prepare([all])).problems).toEqual([])
    front.certificates.follow([all])
    const view = (name: string) => front.certificates.views().find((one) => one.name === name)!
    await until(() => view('good.test').state === 'valid' && view('odd.test').state === 'failed', 'they are answered')
    expect(view('bad.test')).toMatchObject({ state: 'failed', lastError: 'the vault is sealed' })
    expect(view('odd.test').lastError).toContain('it holds no PEM certificate')
    expect(view('slow.test').state).toBe('pending')
    expect(front.certificates.of(all).list.map(({ names }) => names)).toEqual([['good.test']])
    expect(front.events.filter(({ what }) => what === 'issued').map(({ name }) => name)).toEqual(['good.test'])

    // Not before its pause is over, which grows.
    const timesAsked = (name: string) => asked.filter((one) => one === name).length
    front.certificates.look()
    expect(timesAsked('bad.test')).toBe(1)
    now += 61_000
    front.certificates.look()
    await until(() => front.events.filter(({ name }) => name === 'bad.test').length === 2, 'it is asked again')
    now += 61_000
    front.certificates.look()
    expect(timesAsked('bad.test')).toBe(2)
    expect(await front.certificates.renew('bad.test')).toEqual({ ok: false, status: 502, error: 'the vault is sealed' })
    answers['bad.test'] = () => ca.issue(['bad.test'])
    expect(await front.certificates.renew('bad.test')).toMatchObject({ ok: true })
    expect(view('bad.test')).not.toHaveProperty('lastError')

    // Six days of life: two thirds are over after three more.
    now += 3.1 * DAY_MS
    front.certificates.look()
    await until(() => front.events.some(({ what }) => what === 'renewed'), 'it is renewed')
    await front.certificates.stop()
    expect(stopped).toContain('slow.test')
  })

  test('F9: asked ahead it is not asked again, and one that hangs is not waited for', async () => {
    const asked: string[] = []
    await using front = frontDoor(at('state'), {
      provide: (_module, name) => {
        asked.push(name)
        return name === 'slow.test' ? new Promise(() => {}) : ca.issue([name])
      },
    })
    const all = spec('good.test', 'slow.test')
    await front.certificates.askAhead([all], 50)
    expect((await front.certificates.prepare([all])).problems).toEqual([])
    expect(front.certificates.of(all).list.map(({ names }) => names)).toEqual([['good.test']])
    front.certificates.follow([all])
    front.certificates.look()
    expect(asked).toEqual(['good.test', 'slow.test'])
  })

  test('F9: what it gave is shown while it fails', async () => {
    let answer: () => ReturnType<Provide> = () => ca.issue(['a.test'])
    await using front = frontDoor(at('state'), { provide: () => answer() })
    await front.certificates.prepare([spec('a.test')])
    front.certificates.follow([spec('a.test')])
    await until(() => front.certificates.views()[0]!.state === 'valid', 'it is there')
    const before = front.certificates.of(spec('a.test'))
    answer = () => ca.issue(['a.test'], { from: -9, to: -1 })
    expect(await front.certificates.renew('a.test')).toMatchObject({
      ok: false,
      error: expect.stringContaining('expired'),
    })
    expect(front.certificates.of(spec('a.test'))).toEqual(before)
    expect(front.certificates.views()[0]).toMatchObject({
      state: 'valid',
      lastError: expect.stringContaining('expired'),
    })
  })

  test('F9: leaves a name to ACME', async () => {
    const { openAcme, issue, followed } = fakeAcme()
    await using front = frontDoor(at('state'), { openAcme, provide: async () => 'acme' })
    await front.certificates.prepare([spec('a.test')])
    front.certificates.follow([spec('a.test')])
    await until(() => followed.length > 0, 'ACME has heard of it')
    expect(followed).toEqual([['a.test']])
    await issue('a.test')
    expect(front.certificates.of(spec('a.test')).list).toHaveLength(1)
    expect(front.certificates.views()[0]).toMatchObject({ source: 'module', state: 'valid' })
  })

  test('F9: is refused without names, and when it is not there', async () => {
    await using front = frontDoor(at('state'))
    const { problems } = await front.certificates.prepare([
      { route: 'any', names: [], certificate: { module: at('any.ts') } },
      { route: 'none', names: ['a.test'], certificate: { module: at('none.ts') } },
    ])
    expect(problems.map(({ route, message }) => [route, message.split(': ')[1]])).toEqual([
      ['any', expect.stringContaining('give the route domains')],
      ['none', 'no such file'],
    ])
  })
})

describe('in a process of its own', () => {
  test('F9: answers with texts, files or "acme"; what it prints is not the answer', async () => {
    const { cert, key } = await ca.issue(['a.test'])
    await Bun.write(at('a.crt'), cert)
    await Bun.write(at('a.key'), key)
    await Bun.write(
      at('give.ts'),
      `import { readFile } from 'node:fs/promises'
       export default async (name) => {
         console.log('asked for', name)
         process.stdout.write('no end of a line')
         if (name === 'files.test') return { cert: ${JSON.stringify(at('a.crt'))}, key: 'a.key' }
         if (name === 'texts.test') return { cert: await readFile('a.crt', 'utf8'), key: await readFile('a.key', 'utf8') }
         if (name === 'acme.test') return 'acme'
         if (name === 'nothing.test') return undefined
         throw new Error('not mine: ' + name)
       }`,
    )
    const [files, texts, acme, nothing, thrown, gone] = await Promise.allSettled([
      ...['files.test', 'texts.test', 'acme.test', 'nothing.test', 'other.test'].map((name) =>
        provide(at('give.ts'), name, never),
      ),
      provide(at('gone.ts'), 'a.test', never),
    ])
    expect(files).toEqual({ status: 'fulfilled', value: { cert, key } })
    expect(texts).toEqual({ status: 'fulfilled', value: { cert, key } })
    expect(acme).toEqual({ status: 'fulfilled', value: 'acme' })
    const why = (result: PromiseSettledResult<unknown> | undefined) => String((result as PromiseRejectedResult).reason)
    expect(why(nothing)).toContain('it gave neither { cert, key } nor "acme"')
    expect(why(thrown)).toEndWith('give.ts: not mine: other.test')
    expect(why(gone)).toContain('gone.ts')
  }, 20_000)

  test('F9: what it leaves running holds nothing up; one that ends without an answer, or says odd things, is told in a line', async () => {
    await Bun.write(
      at('leave.ts'),
      `export default (name) => {
         if (name === 'end.test') process.exit(0)
         if (name === 'odd.test') throw new Error('two\\nlines \\u009b31m \\u202ered')
         const child = Bun.spawn(['sleep', '60'], { stdio: ['ignore', 'inherit', 'inherit'] })
         setInterval(() => {}, 1000)
         require('node:fs').writeFileSync('left.pid', String(child.pid))
         return 'acme'
       }`,
    )
    const ask = (name: string) => provide(at('leave.ts'), name, never).catch((error: Error) => error.message)
    const [left, end, odd] = await Promise.all(['left.test', 'end.test', 'odd.test'].map(ask))
    const pid = Number(await Bun.file(at('left.pid')).text())
    // It still runs: nobody has waited for it.
    process.kill(pid, 'SIGKILL')
    expect(left).toBe('acme')
    expect(end).toEndWith('leave.ts: it ended without an answer')
    expect(odd).toEndWith('leave.ts: two lines 31m red')
  }, 20_000)

  test('F9: is ended when it is not wanted any more', async () => {
    await Bun.write(at('hang.ts'), 'export default () => new Promise(() => setInterval(() => {}, 1000))\n')
    const stop = new AbortController()
    const asked = provide(at('hang.ts'), 'a.test', stop.signal)
    setTimeout(() => stop.abort(), 300)
    expect(await asked.catch((error: Error) => error.message)).toContain('was not waited for')
  }, 20_000)
})

test('at most so many calls at once, and a place that gets free is given on', async () => {
  let [running, most] = [0, 0]
  const ends: (() => void)[] = []
  const call = atOnce(2, async (fails: boolean) => {
    most = Math.max(most, ++running)
    await new Promise<void>((resolve) => ends.push(resolve))
    running--
    if (fails) throw new Error('failed')
  })
  const calls = Promise.allSettled([true, false, true, false, false].map((fails) => call(fails)))
  while (running > 0) {
    ends.shift()!()
    await new Promise((resolve) => setImmediate(resolve))
  }
  expect((await calls).map(({ status }) => status)).toEqual([
    ...(['rejected', 'fulfilled', 'rejected', 'fulfilled', 'fulfilled'] as const),
  ])
  expect(most).toBe(2)
})
