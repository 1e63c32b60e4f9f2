// The admin API over HTTP, at its door: for each rule there is a request that it refuses, beside the same request without the
// fault, which is answered. A real server on loopback, a gateway that only counts what reaches it.
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { chmodSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  ADMIN_BODY_BYTES_MAX,
  ADMIN_FAILURE_CLIENTS_MAX,
  ADMIN_FAILURES_MAX,
  ADMIN_LOGIN_BYTES_MAX,
} from '../../src/base/limits.ts'
import { check } from '../../src/config/check.ts'
import { isOwnHost } from '../../src/observe/admin-guard.ts'
import { AdminHttp } from '../../src/observe/admin-http.ts'
import { Login, tokenOf } from '../../src/observe/admin-login.ts'
import type { Gateway } from '../../src/observe/admin-routes.ts'
import { groupNumber } from '../../src/observe/admin-socket.ts'

const TOKEN = 'a-token-that-nobody-guesses'
const IDLE_MS = 1000
const asked: string[] = []
const gateway = {
  status: async () => (asked.push('status'), { version: '1' }),
  reload: async () => (asked.push('reload'), { ok: true, changes: {} }),
  routes: async () => Promise.reject(new Error('<b>broken</b>')),
} as unknown as Gateway
const server = new AdminHttp({ hostname: '127.0.0.1', port: 0, token: TOKEN, idleMs: IDLE_MS }, gateway)
let port = 0

beforeAll(async () => {
  await server.start()
  port = Number(new URL(server.url).port)
})
beforeEach(() => void asked.splice(0))
afterAll(() => server.stop())

const bearer = { authorization: `Bearer ${TOKEN}` }
function ask(path: string, headers: Record<string, string> = {}, init: RequestInit = {}): Promise<Response> {
  return fetch(`http://127.0.0.1:${port}${path}`, { redirect: 'manual', ...init, headers })
}
const origin = () => `http://127.0.0.1:${port}`
const post = (path: string, headers: Record<string, string>, body?: string) =>
  ask(path, headers, { method: 'POST', body })

async function logIn(): Promise<string> {
  const answer = await post('/login', { origin: origin() }, JSON.stringify({ token: TOKEN }))
  expect(answer.status).toBe(204)
  return answer.headers.get('set-cookie')!
}
const cookieOf = (header: string) => header.split(';')[0]!

describe('without the token', () => {
  test('the page that asks for it, with what it needs, and nothing else', async () => {
    const page = await ask('/login')
    expect(page.status).toBe(200)
    const html = await page.text()
    const needed = [...html.matchAll(/(?:href|src)="([^"]+)"/g)].map(([, path]) => path!)
    expect(needed.length).toBeGreaterThanOrEqual(2)
    for (const path of needed) expect([path, (await ask(path)).status]).toEqual([path, 200])

    const first = await ask('/')
    expect([first.status, first.headers.get('location')]).toEqual([303, '/login'])
    const own = await (await ask('/', bearer)).text()
    const others = [...own.matchAll(/(?:href|src)="(\/chunk[^"]+)"/g)].map(([, path]) => path!)
    expect(others.length).toBeGreaterThanOrEqual(2)
    const paths = ['/v1/status', '/v1/events', '/metrics', '/v1/certificates', '/v1/nothing', '/nothing', ...others]
    for (const path of paths) {
      const answer = await ask(path)
      expect([path, answer.status, answer.headers.get('www-authenticate')]).toEqual([
        path,
        401,
        'Bearer realm="sluice"',
      ])
    }
    for (const path of others) expect([path, (await ask(path, bearer)).status]).toEqual([path, 200])
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS', 'HEAD', 'PATCH'])
      expect([method, (await ask('/v1/reload', {}, { method })).status]).toEqual([method, 401])
    expect(asked).toEqual([])
  })

  test('a wrong one is refused, in every form', async () => {
    for (const authorization of ['Bearer wrong', 'Bearer', `Basic ${btoa(`a:${TOKEN}`)}`, TOKEN])
      expect((await ask('/v1/status', { authorization })).status).toBe(401)
    expect(asked).toEqual([])
    expect((await ask('/v1/status', bearer)).status).toBe(200)
    expect((await ask('/v1/status', { authorization: `bearer  ${TOKEN}` })).status).toBe(200)
    expect((await ask('/v1/status', { cookie: `sluice-${port}=${Date.now() + 1e6}.AAAA` })).status).toBe(401)
  })
})

describe('a login', () => {
  test('gives a cookie that scripts and other sites do not get, and that ends', async () => {
    const header = await logIn()
    expect(header).toMatch(/; HttpOnly/)
    expect(header).toMatch(/; SameSite=Strict/)
    expect(header).toMatch(/; Path=\//)
    expect(header).toMatch(/; Max-Age=43200/)
    expect(header).not.toContain(TOKEN)
    expect((await ask('/v1/status', { cookie: cookieOf(header) })).status).toBe(200)
    const out = await post('/logout', { cookie: cookieOf(header), origin: origin() })
    expect([out.status, out.headers.get('set-cookie')]).toEqual([204, expect.stringContaining('Max-Age=0')])
  })

  test('has to come from our own page, with the right token, in a small body', async () => {
    const body = JSON.stringify({ token: TOKEN })
    expect((await post('/login', {}, body)).status).toBe(403)
    expect((await post('/login', { origin: 'http://evil.test' }, body)).status).toBe(403)
    for (const wrong of [JSON.stringify({ token: 'x' }), '{}', 'null', '{"token":1}', 'no json'])
      expect([wrong, (await post('/login', { origin: origin() }, wrong)).status]).toEqual([wrong, 401])
    const big = JSON.stringify({ token: 'x'.repeat(ADMIN_LOGIN_BYTES_MAX) })
    expect((await post('/login', { origin: origin() }, big)).status).toBe(413)
  })

  test('wrong tokens are counted by address: then nobody learns whether a guess was right, for a minute', () => {
    let now = 0
    const shutOut: string[] = []
    const login = new Login(TOKEN, shutOut.push.bind(shutOut), () => now)
    for (let i = 0; i < ADMIN_FAILURES_MAX; i++) expect(login.try('guess', 'a')).toBe('wrong')
    expect([login.try('guess', 'a'), login.try(TOKEN, 'a'), login.try(TOKEN, 'b')]).toEqual([
      'limited',
      'limited',
      'right',
    ])
    expect(shutOut).toEqual(['a'])
    now = 60_000
    expect(login.try(TOKEN, 'a')).toBe('right')
    // Addresses are remembered up to a limit: the first goes.
    for (let i = 0; i < ADMIN_FAILURES_MAX; i++) login.try('guess', 'first')
    for (let i = 0; i < ADMIN_FAILURE_CLIENTS_MAX; i++) login.try('guess', String(i))
    expect(login.try(TOKEN, 'first')).toBe('right')
  })

  test('a session ends by itself, is not made without the token, and outlives a restart with the same one', () => {
    let now = 1000
    const session = new Login(TOKEN, undefined, () => now).session()
    const again = new Login(TOKEN, undefined, () => now)
    expect(again.isSession(session)).toBe(true)
    expect(new Login('another-token-of-16', undefined, () => now).isSession(session)).toBe(false)
    const [until, signature] = session.split('.')
    for (const forged of ['', '.', `${Number(until) + 1}.${signature}`, `${until}.`, `${until}`, `${session}x`])
      expect([forged, again.isSession(forged)]).toEqual([forged, false])
    now = Number(until)
    expect(again.isSession(session)).toBe(false)
  })

  test('over HTTP, too many wrong tokens are 429, and a session goes on meanwhile', async () => {
    const own = new AdminHttp({ hostname: '127.0.0.1', port: 0, token: TOKEN }, gateway)
    await own.start()
    const get = (headers: Record<string, string>) => fetch(`${own.url}v1/status`, { headers })
    const session = await fetch(`${own.url}login`, {
      method: 'POST',
      headers: { origin: own.url.slice(0, -1) },
      body: JSON.stringify({ token: TOKEN }),
    })
    for (let i = 0; i < ADMIN_FAILURES_MAX; i++) expect((await get({ authorization: 'Bearer x' })).status).toBe(401)
    const limited = await get(bearer)
    expect([limited.status, limited.headers.get('retry-after')]).toEqual([429, '60'])
    expect((await get({ cookie: cookieOf(session.headers.get('set-cookie')!) })).status).toBe(200)
    await own.stop()
  })
})

describe('other sites', () => {
  test('a name that is not ours is refused (DNS rebinding), with the token too', async () => {
    for (const host of [
      'evil.test',
      `evil.test:${port}`,
      `127.0.0.1:${port + 1}`,
      '127.0.0.1',
      `127.0.0.2:${port}`,
      '',
    ]) {
      expect([host, (await ask('/v1/status', { ...bearer, host })).status]).toEqual([host, 421])
      if (host) expect([host, (await ask('/login', { host })).status]).toEqual([host, 421])
    }
    expect(asked).toEqual([])
    for (const host of [`localhost:${port}`, `LOCALHOST:${port}`, `127.0.0.1:${port}`])
      expect([host, (await ask('/v1/status', { ...bearer, host })).status]).toEqual([host, 200])
  })

  test('which names are ours', () => {
    const own = (host: string | null, hostname = '127.0.0.1', at = 8080) => isOwnHost(host, { hostname, port: at })
    expect(own(null)).toBe(false)
    expect(own('localhost', '127.0.0.1', 80)).toBe(true)
    expect(own('[::1]:8080', '::1')).toBe(true)
    expect(own('[0:0::1]:8080', '::1')).toBe(true)
    expect(own('[::1]:8080')).toBe(false)
    expect(own('10.0.0.1:8080', '0.0.0.0')).toBe(true)
    expect(own('[fd00::1]:8080', '::')).toBe(true)
    expect(own('evil.test:8080', '0.0.0.0')).toBe(false)
    expect(own('127.0.0.1.evil.test:8080', '0.0.0.0')).toBe(false)
    expect(own('localhost.evil.test:8080')).toBe(false)
    expect(own('localhost:8080:8080')).toBe(false)
    expect(own('a@localhost:8080')).toBe(false)
  })

  test('what another site has a browser send is refused, and changes nothing', async () => {
    const cookie = cookieOf(await logIn())
    const act = (headers: Record<string, string>) => post('/v1/reload', { cookie, ...headers })
    expect((await act({ origin: origin() })).status).toBe(200)
    expect(asked.splice(0)).toEqual(['reload'])
    // The cookie alone, another origin, another port of this machine (the same "site"), a sandboxed frame.
    const foreign = [{}, 'http://evil.test', `http://127.0.0.1:${port + 1}`, 'null', `https://127.0.0.1:${port}`]
    for (const one of foreign)
      expect([one, (await act(typeof one === 'string' ? { origin: one } : one)).status]).toEqual([one, 403])
    for (const site of ['cross-site', 'same-site'])
      expect((await act({ origin: origin(), 'sec-fetch-site': site })).status).toBe(403)
    for (const site of ['cross-site', 'same-site'])
      expect((await ask('/v1/status', { cookie, 'sec-fetch-site': site })).status).toBe(403)
    // A form of another site goes nowhere, not even with the page that a link may lead to.
    const visit = { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' }
    expect((await post('/login', { origin: 'null', ...visit })).status).toBe(403)
    expect(asked).toEqual([])
    expect((await ask('/login', visit)).status).toBe(200)
    expect((await ask('/v1/status', { cookie, 'sec-fetch-site': 'same-origin' })).status).toBe(200)
    // A program with the token is no browser; a page with it is, and it is another site.
    expect((await post('/v1/reload', bearer)).status).toBe(200)
    expect((await post('/v1/reload', { ...bearer, origin: 'http://evil.test' })).status).toBe(403)
  })

  test('no answer goes into a frame, is guessed at, loads from elsewhere, tells where it came from or may be read', async () => {
    const answers = await Promise.all([
      ask('/login'),
      ask('/'),
      ask('/', bearer),
      ask('/v1/status', bearer),
      ask('/v1/routes', bearer),
      ask('/v1/nothing', bearer),
      ask('/v1/status'),
      ask('/v1/status', { host: 'evil.test' }),
    ])
    expect(answers.map(({ status }) => status)).toEqual([200, 303, 200, 200, 500, 404, 401, 421])
    for (const { headers } of answers) {
      expect(headers.get('content-security-policy')).toContain("default-src 'self'")
      expect(headers.get('content-security-policy')).toContain("frame-ancestors 'none'")
      expect(headers.get('x-content-type-options')).toBe('nosniff')
      expect(headers.get('referrer-policy')).toBe('no-referrer')
      expect(headers.get('cache-control')).toBe('no-store')
      expect(headers.get('access-control-allow-origin')).toBeNull()
    }
    expect(answers[4]!.headers.get('content-type')).toContain('application/json')
  })
})

describe('the rest', () => {
  test('the token is made once, for its owner alone, and what is no token is not taken for one', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'sluice-token-'))
    try {
      const file = join(directory, 'admin.token')
      const token = await tokenOf(file)
      expect(token).toMatch(/^[\w-]{43}$/)
      expect(statSync(file).mode & 0o777).toBe(0o600)
      chmodSync(file, 0o644)
      expect(await tokenOf(file)).toBe(token)
      expect(statSync(file).mode & 0o777).toBe(0o600)
      await Bun.write(file, 'two words')
      expect(tokenOf(file)).rejects.toThrow('does not contain one token')
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  test('a configured token is long enough, and fits into a header', () => {
    const tried = (token: string) => check({ routes: [], admin: { http: { port: 8080, token } } })
    expect(tried('a'.repeat(16))).toMatchObject({ ok: true })
    for (const token of ['a'.repeat(15), 'sixteen letters or more', 'sixteen-lettérs-or-more'])
      expect([token, tried(token)]).toMatchObject([token, { ok: false, problems: [{ path: 'admin.http.token' }] }])
  })

  test('the group of the socket, as /etc/group has it', () => {
    const text = 'root:x:0:\nsluiced:x:5:\nsluice:x:998:operator\n'
    expect([groupNumber(text, 'sluice'), groupNumber(text, 'operator'), groupNumber('', 'sluice')]).toEqual([
      998,
      null,
      null,
    ])
    expect(groupNumber('sluice:x:nobody:', 'sluice')).toBeNull()
  })

  test('a body that is too long is not read, with the token neither', async () => {
    const body = Buffer.alloc(ADMIN_BODY_BYTES_MAX + 1, ' ')
    expect((await ask('/v1/routes', bearer, { method: 'PUT', body })).status).toBe(413)
  })

  test('who sends a body byte by byte is closed', async () => {
    const ms = await drip(
      `POST /login HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nOrigin: ${origin()}\r\nContent-Length: 4000\r\n\r\n`,
    )
    console.log(`closed after ${Math.round(ms)} ms`)
  }, 20_000)
})

/** Sends this and then a byte in every 200 ms. Resolves, with how long it took, when the server has closed. */
async function drip(head: string): Promise<number> {
  const began = performance.now()
  const { promise, resolve } = Promise.withResolvers<void>()
  const socket = await Bun.connect({
    hostname: '127.0.0.1',
    port,
    socket: { data() {}, close: () => resolve(), end: (one) => void one.end(), error: () => resolve() },
  })
  socket.write(head)
  const timer = setInterval(() => socket.write('x'), 200)
  await promise
  clearInterval(timer)
  return performance.now() - began
}
