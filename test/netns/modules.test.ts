// What handlers import: the sockets API under all its names, from the handler itself and from packages beside it, which resolve
// as in the Workers runtime. From the source, and with the compiled program, which brings no node_modules.
import { expect } from 'bun:test'
import { mkdirSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { testIf } from '../support.ts'
import { Gateway } from './gateway.ts'
import { Lab } from './lab.ts'

const COMPILED = resolve(import.meta.dir, '../../build/sluice')

const mtime = (path: string) => statSync(path, { throwIfNoEntry: false })?.mtimeMs
const sources = [...new Bun.Glob('{src,nft}/**').scanSync({ absolute: true }), resolve('Makefile')]
const built = mtime(COMPILED)
const whyNotCompiled =
  built === undefined
    ? 'build/sluice is not there: make build'
    : sources.some((path) => mtime(path)! > built)
      ? 'build/sluice is older than its sources: make build'
      : null

const programs = [
  { name: 'from the source', program: undefined, why: null },
  { name: 'the compiled program', program: [COMPILED], why: whyNotCompiled },
]

/** Packages as the registry has them: their socket code is behind a condition, in modules of both kinds. */
const FILES = {
  'node_modules/behind/package.json': JSON.stringify({
    name: 'behind',
    version: '1.0.0',
    exports: { '.': { workerd: { import: './workers.mjs', require: './workers.cjs' }, default: './empty.js' } },
  }),
  'node_modules/behind/empty.js': "exports.kind = 'default'\n",
  'node_modules/behind/workers.mjs':
    "export { connect } from 'cloudflare:sockets'\nexport const kind = 'workerd, imported'\n",
  // As in pg-cloudflare: imported when it is needed.
  'node_modules/behind/workers.cjs':
    "exports.kind = 'workerd, required'\nexports.load = async () => (await import('cloudflare:sockets')).connect\n" +
    "exports.required = () => require('cloudflare:sockets').connect\n",
  'node_modules/around/package.json': JSON.stringify({ name: 'around', version: '1.0.0', main: 'index.js' }),
  'node_modules/around/index.js':
    "const { kind, load, required } = require('behind')\nexports.kind = kind\nexports.load = load\nexports.required = required\nexports.agent = navigator.userAgent\n",
  'packages.mjs': `import { connect as theirs, kind } from 'behind'
import around from 'around'
import { connect } from 'cloudflare:sockets'
import * as sluice from 'sluice/sockets'

export default {
  async connect(socket) {
    const found = {
      type: typeof connect,
      same: [theirs, await around.load(), around.required(), sluice.connect].map((one) => one === connect),
      kinds: [kind, around.kind],
      agent: around.agent,
    }
    const writer = socket.writable.getWriter()
    await writer.write(new TextEncoder().encode(JSON.stringify(found)))
    await writer.close()
  },
}
`,
}

for (const { name, program, why } of programs)
  testIf(why === null, why ?? '')(
    `D1: 'cloudflare:sockets' in handlers and in their packages, under the condition workerd: ${name}`,
    async () => {
      await using lab = await Lab.create()
      await using gateway = await Gateway.start(lab, [], { program })
      for (const [path, text] of Object.entries(FILES)) {
        const file = join(gateway.directory, path)
        mkdirSync(dirname(file), { recursive: true })
        writeFileSync(file, text)
      }
      gateway.write([
        { name: 'packages', match: { ports: 8400 }, action: { type: 'socket-handler', handler: './packages.mjs' } },
      ])
      expect(await gateway.reload()).toMatchObject({ status: 200 })
      await gateway.settled()
      expect(JSON.parse(await said(lab, 8400))).toEqual({
        type: 'function',
        same: [true, true, true, true],
        kinds: ['workerd, imported', 'workerd, required'],
        agent: 'Cloudflare-Workers',
      })
    },
    30_000,
  )

/** All that a server says before it closes. */
function said(lab: Lab, port: number): Promise<string> {
  const { promise, resolve: over, reject } = Promise.withResolvers<string>()
  const pieces: Uint8Array[] = []
  lab.client
    .connect(lab.gateway.clientSide4, port, {
      data: (_socket, bytes) => void pieces.push(bytes),
      close: () => over(Buffer.concat(pieces).toString()),
    })
    .catch(reject)
  return promise
}
