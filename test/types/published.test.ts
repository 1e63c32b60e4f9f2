// The types that the package publishes: what is declared is what is there, a program of somebody else compiles with them, and
// every export is documented with an example.
import { expect, test } from 'bun:test'
import { mkdir, mkdtemp, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import * as library from '../../src/index.ts'
import * as sockets from '../../src/sockets.ts'

// These two lines are checked by the compiler: `make check`.
const declaredLibrary: typeof import('../../src/types/index.d.ts') = library
const declaredSockets: typeof import('../../src/types/sockets.d.ts') = sockets

const ROOT = resolve(import.meta.dir, '../..')
const declarations = (name: string) => Bun.file(join(ROOT, 'src/types', name)).text()

test.each([
  ['sockets.d.ts', declaredSockets],
  ['index.d.ts', declaredLibrary],
] as const)('%s declares what there is, and no more', async (name, exports) => {
  const text = await declarations(name)
  const values = [...text.matchAll(/^export declare (?:async )?(?:function|const|class) (\w+)/gm)].map(
    ([, one]) => one!,
  )
  expect(values.toSorted()).toEqual(Object.keys(exports).toSorted())
})

test.each(['sockets.d.ts', 'index.d.ts'])('every export of %s has an example', async (name) => {
  const text = await declarations(name)
  const found = [...text.matchAll(/(\/\*\*(?:(?!\*\/)[^])*\*\/\n)?^export (?!type \{)(.*)$/gm)]
  expect(found.length).toBeGreaterThan(3)
  expect(found.filter(([, doc]) => !doc?.includes('@example')).map(([, , what]) => what)).toEqual([])
})

const HANDLER = `
import { connect, proxy, SocketError, type Handler } from 'sluice/sockets'

export default {
  async connect(socket, env, ctx) {
    const target = connect({ hostname: env.host, port: 5432 }, { secureTransport: 'starttls' })
    try {
      const { alpn } = await target.opened
      ctx.gate(Promise.resolve(alpn))
      proxy(socket, target.startTls(), { signal: AbortSignal.timeout(1000) })
    } catch (error) {
      if (error instanceof SocketError && error.code === 'connect_refused') await socket.close()
    }
  },
} satisfies Handler<{ host: string }>
`
const WORKERS = `
import { connect, type Socket } from 'cloudflare:sockets'
export const socket: Socket = connect('a.test:25')
`
const CONFIG = `
import { defineConfig, start } from 'sluice'
const config = defineConfig({ routes: [{ name: 'a', match: { ports: 80 }, action: { type: 'redirect', to: 'https://{host}' } }] })
export const gateway = await start(config)
export default config
`

/** As a compiler outside of this project sees it. */
async function compile(files: Record<string, string>, options: object) {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-types-'))
  try {
    await mkdir(join(directory, 'node_modules'))
    await symlink(ROOT, join(directory, 'node_modules/sluice'))
    for (const name of ['bun-types', '@types', 'undici-types'])
      await symlink(join(ROOT, 'node_modules', name), join(directory, 'node_modules', name))
    for (const [name, text] of Object.entries(files)) await Bun.write(join(directory, name), text)
    const base = { target: 'esnext', module: 'preserve', moduleResolution: 'bundler', noEmit: true, strict: true }
    await Bun.write(join(directory, 'tsconfig.json'), JSON.stringify({ compilerOptions: { ...base, ...options } }))
    const check = Bun.spawn([process.execPath, 'check', '--no-pretty'], {
      cwd: directory,
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
    })
    const [out, err] = await Promise.all([new Response(check.stdout).text(), new Response(check.stderr).text()])
    return { exitCode: await check.exited, said: `${out}${err}` }
  } finally {
    await rm(directory, { recursive: true })
  }
}

test('a handler compiles without any types of Bun', async () => {
  const options = { lib: ['esnext', 'dom'], types: ['sluice/cloudflare'] }
  const { exitCode, said } = await compile({ 'handler.ts': HANDLER, 'workers.ts': WORKERS }, options)
  expect(exitCode, said).toBe(0)
})

test('so does a configuration, with the settings that Bun gives a new project', async () => {
  const options = {
    lib: ['esnext'],
    types: ['bun-types'],
    allowImportingTsExtensions: true,
    verbatimModuleSyntax: true,
    skipLibCheck: true,
    noUncheckedIndexedAccess: true,
  }
  const { exitCode, said } = await compile({ 'config.ts': CONFIG, 'handler.ts': HANDLER }, options)
  expect(exitCode, said).toBe(0)
})

test('and a mistake is found', async () => {
  const options = { lib: ['esnext', 'dom'], types: [] }
  const { exitCode, said } = await compile({ 'handler.ts': HANDLER.replace('5432', "'5432'") }, options)
  expect(exitCode).not.toBe(0)
  expect(said).toContain("Type 'string' is not assignable to type 'number'")
})
