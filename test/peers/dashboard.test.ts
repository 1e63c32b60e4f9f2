// The dashboard in a real browser, against a gateway with live connections of every carrier: each panel shows what the API
// says, buttons do what they say, hostile text stays text, and nothing is asked of anybody else.
import { afterAll, beforeAll, expect } from 'bun:test'
import { chmodSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core'
import { carriers, echo, type Peer } from '../netns/carriers.ts'
import { forward, Gateway, until, type Connection } from '../netns/gateway.ts'
import { Lab } from '../netns/lab.ts'
import { slowness, testIf } from '../support.ts'
import { HOSTILE, hostileAnswers } from './hostile-answers.ts'
import { Place } from './peers.ts'

const PORT = 8088
const ORIGIN = `http://127.0.0.1:${PORT}`
const SIZES = { wide: { width: 1280, height: 720 }, narrow: { width: 400, height: 860 } }
const VIEWS = ['overview', 'connections', 'targets', 'certificates', 'events']
/** Where pictures of every view are put, for the README: with something to see in the plots, which takes some minutes. */
const KEPT = process.env.SLUICE_SCREENSHOTS
const PICTURE_MS = 200_000
const TEST_MS_MAX = KEPT ? 300_000 : 30_000 * slowness

const program = Bun.which('chromium')
const inBrowser = (name: string, body: () => void | Promise<void>) =>
  testIf(program !== null, 'needs chromium')(name, body, TEST_MS_MAX)

let lab: Lab
let gateway: Gateway
let browser: Browser
let context: BrowserContext
let page: Page
const place = new Place()
const peers = new Map<string, Peer>()
/** What must not happen. */
const requests: string[] = []
const complaints: string[] = []

beforeAll(async () => {
  if (!program) return
  lab = await Lab.create()
  const all = await carriers()
  const targets = all.map((one) => one.listen(lab.backend, echo))
  gateway = await Gateway.start(
    lab,
    [
      ...all.map((one, i) => one.route(one.name, 8400 + i, { host: lab.backend.address4, port: targets[i]!.port })),
      forward('dead', 8500, [{ host: lab.backend.address4, port: 1 }], {
        forwardingEngine: 'user',
        health: { interval: '1s', timeout: '1s', rise: 1, fall: 1 },
      }),
    ],
    { admin: { http: { port: PORT } } },
  )
  for (const [i, one] of all.entries()) {
    const peer = await one.connect(lab.client, lab.gateway.clientSide4, 8400 + i)
    peer.write('x'.repeat(50_000))
    peers.set(one.name, peer)
  }
  await until(() => [...peers.values()].every((peer) => peer.received === 50_000), 10_000, 'every carrier carries')
  // The browser lives where the gateway does.
  const wrapper = place.file('chromium', `#!/bin/sh\nexec ${lab.gateway.command([program]).join(' ')} "$@"\n`)
  chmodSync(wrapper, 0o755)
  browser = await chromium.launch({
    executablePath: wrapper,
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
    env: { ...process.env, HOME: place.path },
  })
  context = await browser.newContext({ viewport: SIZES.wide, colorScheme: 'light' })
  context.on('request', (request) => requests.push(request.url()))
  page = await context.newPage()
  page.on('console', (message) => {
    // The answer to a wrong token is one of those that a browser remarks on.
    if (['error', 'warning'].includes(message.type()) && !message.text().includes('401'))
      complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(error.message))
}, 60_000)

afterAll(async () => {
  await browser?.close()
  await gateway?.[Symbol.asyncDispose]()
  await lab?.[Symbol.asyncDispose]()
  place[Symbol.dispose]()
}, 30_000)

async function show(view: string) {
  await page.click(`nav a[href="#${view}"]`)
  await page.waitForSelector(`#${view}:not([hidden])`)
}
/** The texts of a table: column title → cell, for each row. */
const table = async (view: string): Promise<Record<string, string>[]> =>
  page.evaluate(`[...document.querySelectorAll('#${view} tbody tr')].map((row) =>
    Object.fromEntries([...row.querySelectorAll('td[data-title]')].map((cell) => [cell.dataset.title, cell.textContent])))`)
const text = (selector: string) => page.textContent(selector).then((found) => found ?? '')
const rows = (view: string, count: number) =>
  until(async () => (await table(view)).length === count, 10_000, `${count} rows in ${view}`)

/** Everybody says something all the time, now more, now less. */
function talkOfAll() {
  let round = 0
  return setInterval(() => {
    round++
    let size = 2000
    for (const peer of [...peers.values()].toReversed())
      peer.write('x'.repeat((size *= 2) * (1.2 + Math.sin(round / 90 + size))))
  }, 100)
}

inBrowser('login: the token of the state directory, and no other', async () => {
  await page.goto(ORIGIN)
  expect(page.url()).toBe(`${ORIGIN}/login`)
  await page.keyboard.type('wrong')
  await page.keyboard.press('Enter')
  await until(async () => (await text('#answer')).includes('the token is wrong'), 5000, 'it says so')
  const token = readFileSync(join(gateway.directory, 'state/admin.token'), 'utf8').trim()
  await page.fill('#token', token)
  await page.keyboard.press('Enter')
  await page.waitForURL(`${ORIGIN}/`)
  const [cookie] = await context.cookies()
  expect(cookie).toMatchObject({ httpOnly: true, sameSite: 'Strict', path: '/' })
  expect(gateway.logText()).toContain('admin.token')
})

inBrowser('overview: numbers, plots and routes with their carriers are those of the API', async () => {
  const routes = await gateway.routes()
  await rows('routes', routes.length)
  const shown = await table('routes')
  expect(shown.map((row) => row.Route!).toSorted()).toEqual(routes.map(({ name }) => name).toSorted())
  for (const route of routes) {
    const row = shown.find(({ Route }) => Route === route.name)!
    expect([row.Carrier, row.State, row.Why]).toEqual([route.carrier, route.state, route.reason])
    expect([row.Open, row.Total]).toEqual([String(route.connections), String(route.total)])
  }
  const status = await gateway.status()
  const { kernel, proxied } = status.connections
  expect(await text('#numbers')).toContain(`${kernel} kernel, ${proxied} proxied`)
  expect([kernel, proxied]).toEqual([1, 4])
  expect(await text('#carried figcaption')).toMatch(/kernel 1.*splice 1.*user 3/)
  await until(async () => (await text('#attention')).includes('of route dead is down'), 10_000, 'what is down is said')
  // While something is carried, it is plotted: the numbers beside the plot are those of its last point.
  const talk = setInterval(() => peers.get('kernel')!.write('x'.repeat(100_000)), 50)
  await until(
    async () => /kernel [0-9.]+ [kM]B\/s/.test(await text('#throughput figcaption')),
    10_000,
    'a rate',
  ).finally(() => clearInterval(talk))
  for (const plot of ['throughput', 'carried', 'hour'])
    expect(await page.evaluate(`document.querySelector('#${plot} canvas').width > 200`)).toBe(true)
})

inBrowser('dark and light, wide and narrow: nothing sticks out', async () => {
  const talk = KEPT ? talkOfAll() : undefined
  if (KEPT) await Bun.sleep(PICTURE_MS)
  for (const colorScheme of ['light', 'dark'] as const)
    for (const [name, size] of Object.entries(SIZES)) {
      await page.emulateMedia({ colorScheme })
      await page.setViewportSize(size)
      for (const view of VIEWS) {
        await show(view)
        expect([view, await page.evaluate('document.documentElement.scrollWidth')]).toEqual([view, size.width])
        if (KEPT) await page.screenshot({ path: join(KEPT, `${view}-${name}-${colorScheme}.png`) })
      }
    }
  clearInterval(talk)
})

inBrowser('connections: of all carriers, filtered, sorted, and closed by keyboard', async () => {
  await show('connections')
  const before = await gateway.connections()
  await rows('connections', before.length)
  const shown = await table('connections')
  const lines = (list: Connection[]) => list.map((one) => `${one.client} ${one.listener} ${one.carrier} ${one.target}`)
  expect(shown.map((row) => `${row.Client} ${row.Listener} ${row.Carrier} ${row.Target}`).toSorted()).toEqual(
    lines(before).toSorted(),
  )
  expect(shown.filter((row) => row['Server name'] === 'carrier.test')).toHaveLength(3)

  await page.fill('#connections input', 'kernel')
  await rows('connections', 1)
  await page.fill('#connections input', '')
  const heading = page.locator('#connections th button', { hasText: 'Client' })
  await heading.focus()
  for (const order of ['ascending', 'descending']) {
    await page.keyboard.press('Enter')
    expect(await page.getAttribute('#connections th:first-child', 'aria-sort')).toBe(order)
    const clients = (await table('connections')).map((row) => row.Client!)
    const sorted = clients.toSorted((a, b) => a.localeCompare(b, 'en', { numeric: true }))
    expect(clients).toEqual(order === 'ascending' ? sorted : sorted.toReversed())
  }

  // Up and down among the buttons.
  const focused = () =>
    page.evaluate(`[...document.querySelectorAll('#connections td.action button')].indexOf(document.activeElement)`)
  await page.locator('#connections td.action button').first().focus()
  const rowsReached: unknown[] = []
  for (const key of ['ArrowDown', 'ArrowDown', 'ArrowUp']) {
    await page.keyboard.press(key)
    rowsReached.push(await focused())
  }
  expect(rowsReached).toEqual([1, 2, 1])

  for (const carrier of ['kernel', 'splice', 'user'] as const) {
    const peer = peers.get(carrier)!
    const { id, client } = (await gateway.connections()).find((one) => one.route === carrier)!
    const close = page.getByRole('button', { name: `Close the connection of ${client}`, exact: true })
    await close.focus()
    await page.keyboard.press('Enter')
    expect(await text('dialog[open]')).toContain(client)
    // Cancel has the focus: nothing is closed by a second Enter.
    await page.keyboard.press('Enter')
    expect(await page.locator('dialog[open]').count()).toBe(0)
    expect((await gateway.connections()).some((one) => one.id === id)).toBe(true)
    await close.press('Enter')
    await page.keyboard.press('Tab')
    await page.keyboard.press('Enter')
    await peer.gone
    await until(async () => (await close.count()) === 0, 10_000, `the row of ${carrier} goes`)
  }
  const closed = () => gateway.records().filter(({ event }) => event === 'closed')
  const records = await until(() => closed().length === 3 && closed(), 5000, 'they are in the access log')
  expect(records.map(({ reason }) => reason)).toEqual(['killed', 'killed', 'killed'])
})

inBrowser('targets with their health, certificates, and events as they happen', async () => {
  await show('targets')
  const { targets } = await gateway.ask<{ targets: { route: string; target: string; state: string }[] }>('/v1/targets')
  await rows('targets', targets.length)
  const lines = (await table('targets')).map((row) => `${row.Route} ${row.Target} ${row.State}`)
  expect(lines.toSorted()).toEqual(targets.map((one) => `${one.route} ${one.target} ${one.state}`).toSorted())
  expect(lines).toContain(`dead ${lab.backend.address4}:1 down`)

  await show('certificates')
  const asked = await gateway.ask<{ status: number; certificates?: { name: string }[] }>('/v1/certificates')
  await rows('certificates', asked.certificates?.length ?? 0)
  const names = (await table('certificates')).map((row) => row.Name!)
  expect(names.toSorted()).toEqual((asked.certificates ?? []).map(({ name }) => name).toSorted())

  await show('events')
  await until(async () => (await text('#events .tools')).includes('Listening'), 5000, 'it listens')
  const peer = peers.get('terminate')!
  peer.finish()
  await until(async () => (await text('#events ol')).includes('finished'), 5000, 'the close is told')
  expect(await text('#events ol li')).toContain('(terminate, user, carrier.test): finished')
})

inBrowser('what comes from the network is text, wherever it is shown; thousands of rows are quick', async () => {
  const { answers, events } = hostileAnswers((await gateway.routes())[0]!)
  for (const [name, answer] of Object.entries(answers))
    await page.route(`**/v1/${name}`, (route) => route.fulfill({ json: answer }))
  await page.route('**/v1/events', (route) => route.fulfill({ contentType: 'text/event-stream', body: events }))
  for (const view of VIEWS) {
    await show(view)
    await until(async () => (await text(`#${view}`)).includes(HOSTILE), 10_000, `it is shown in ${view}`)
  }
  await show('connections')
  await rows('connections', 50)
  expect(await text('#connections .tools')).toContain('1–50 of 5,000')
  const ms = await page.evaluate(`(() => {
    const input = document.querySelector('#connections input')
    const began = performance.now()
    input.value = '10.0.0.1:4999'
    input.dispatchEvent(new Event('input'))
    return performance.now() - began
  })()`)
  expect(await table('connections')).toHaveLength(1)
  console.log(`5,000 connections are filtered in ${Math.round(ms as number)} ms`)
  await page.click('#connections td.action button')
  expect(await text('dialog[open]')).toContain(HOSTILE)
  await page.keyboard.press('Escape')
  expect(
    await page.evaluate(`[document.querySelectorAll('main img, main script, dialog img').length, window.hit]`),
  ).toEqual([0, undefined])
  await page.unrouteAll()
})

inBrowser('the theme is kept, all is reached by keyboard, and one can log out', async () => {
  const ground = () => page.evaluate('getComputedStyle(document.body).backgroundColor')
  const dark = await ground()
  await page.click('#theme')
  expect(await ground()).not.toBe(dark)
  await page.reload()
  expect(await ground()).not.toBe(dark)
  const reached: string[] = []
  for (let i = 0; i < 8; i++) {
    await page.keyboard.press('Tab')
    const [label, outline] = (await page.evaluate(
      `[document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]`,
    )) as [string, string]
    expect([label, outline]).toEqual([label, 'solid'])
    reached.push(label)
  }
  expect(reached.slice(0, 5)).toEqual(['Skip to the content', 'Dark', 'Log out', 'Overview', 'Connections'])

  await page.click('#theme')
  expect(await ground()).toBe(dark)
  await page.click('#logout')
  await page.waitForURL(`${ORIGIN}/login`)
  await page.goto(ORIGIN)
  expect(page.url()).toBe(`${ORIGIN}/login`)
})

inBrowser('no request has left the origin, and the browser had nothing to complain of', () => {
  expect(requests.length).toBeGreaterThan(20)
  expect(requests.filter((url) => !url.startsWith(`${ORIGIN}/`))).toEqual([])
  expect(complaints).toEqual([])
})
