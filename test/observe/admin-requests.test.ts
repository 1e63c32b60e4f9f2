// The admin API as requests that are not what it expects find it.
import { expect, test } from 'bun:test'
import { adminRoutes, type Gateway } from '../../src/observe/admin-routes.ts'

/** Every call is noted, and answered as one that was refused. */
function told(): { gateway: Gateway; calls: unknown[][] } {
  const calls: unknown[][] = []
  const gateway = new Proxy(
    {},
    {
      get:
        (_, name) =>
        (...words: unknown[]) => {
          calls.push([name, ...words])
          return Promise.resolve({ ok: false, problems: [], status: 404, error: 'no' })
        },
    },
  ) as Gateway
  return { gateway, calls }
}

async function ask(gateway: Gateway, method: 'GET' | 'POST' | 'PUT' | 'DELETE' | 'PATCH', path: string, body?: string) {
  const patience: number[] = []
  const server = { timeout: (_: Request, seconds: number) => patience.push(seconds) } as never
  const request = Object.assign(new Request('http://sluice/', { method, ...(body === undefined ? {} : { body }) }), {
    params: { name: 'web' },
  })
  const response = await adminRoutes(gateway)[path]![method]!(request as never, server)
  return { status: response.status, allow: response.headers.get('allow'), body: await response.json(), patience }
}

test('issue 7: a method that a path does not have is answered with those that it has', async () => {
  const { gateway, calls } = told()
  expect(await ask(gateway, 'DELETE', '/v1/routes')).toMatchObject({ status: 405, allow: 'GET, PUT' })
  expect(await ask(gateway, 'GET', '/v1/stop')).toMatchObject({ status: 405, allow: 'POST' })
  expect(await ask(gateway, 'PATCH', '/v1/routes/:name', '{}')).toMatchObject({ status: 405, allow: 'PUT, DELETE' })
  expect(calls).toEqual([])
})

test('issue 7.1: a reload whose body is misunderstood is none: it could never be taken back', async () => {
  const { gateway, calls } = told()
  for (const body of ['{"confirm":"60s"', '60s', '[]x', '{"confrim":"60s"}', '["60s"]', '"60s"', 'null'])
    expect(await ask(gateway, 'POST', '/v1/reload', body)).toMatchObject({ status: 400 })
  expect(calls).toEqual([])
  await ask(gateway, 'POST', '/v1/reload')
  await ask(gateway, 'POST', '/v1/reload', '{}')
  await ask(gateway, 'POST', '/v1/reload', '{"confirm":"60s"}')
  expect(calls).toEqual([
    ['reload', undefined],
    ['reload', undefined],
    ['reload', '60s'],
  ])
})

test('issue 7: what is no JSON is told so, and changes nothing', async () => {
  const { gateway, calls } = told()
  for (const [method, path] of [
    ['PUT', '/v1/routes'],
    ['PUT', '/v1/routes/:name'],
    ['POST', '/v1/drain'],
    ['POST', '/v1/plan'],
  ] as const)
    expect(await ask(gateway, method, path, '{')).toMatchObject({
      status: 400,
      body: { error: expect.stringContaining('the body is no JSON') },
    })
  expect(calls).toEqual([])
})

test('issue 7.1: an answer may take longer than a configuration that hangs', async () => {
  const { patience } = await ask(told().gateway, 'POST', '/v1/reload')
  expect(Math.min(...patience)).toBeGreaterThan(10)
})
