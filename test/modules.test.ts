// The names under which handlers and their packages find the sockets API, wherever their files are, and how packages resolve.
import { expect, test } from 'bun:test'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { selfArguments } from '../src/config/load.ts'
import { provideModules } from '../src/modules.ts'
import * as sockets from '../src/sockets.ts'

test("D1: 'sluice/sockets' and 'cloudflare:sockets' are the same, imported and required, from any file", async () => {
  provideModules()
  const directory = await mkdtemp(join(tmpdir(), 'sluice-modules-'))
  try {
    for (const [i, name] of ['sluice/sockets', 'cloudflare:sockets'].entries()) {
      await Bun.write(join(directory, `imports${i}.mjs`), `export { connect, proxy, SocketError } from '${name}'\n`)
      await Bun.write(join(directory, `requires${i}.cjs`), `module.exports = require('${name}')\n`)
      for (const file of [`imports${i}.mjs`, `requires${i}.cjs`]) {
        const { connect, proxy, SocketError } = (await import(join(directory, file))) as typeof sockets
        expect(connect).toBe(sockets.connect)
        expect(proxy).toBe(sockets.proxy)
        expect(SocketError).toBe(sockets.SocketError)
      }
    }
  } finally {
    await rm(directory, { recursive: true })
  }
})

test('D1: the processes that load handlers resolve packages under the condition workerd', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'sluice-modules-'))
  try {
    const conditions = { workerd: './workers.js', default: './other.js' }
    const modules = join(directory, 'node_modules/client')
    await mkdir(modules, { recursive: true })
    await Bun.write(join(modules, 'package.json'), JSON.stringify({ name: 'client', exports: { '.': conditions } }))
    await Bun.write(join(modules, 'workers.js'), "export default 'workers'\n")
    await Bun.write(join(modules, 'other.js'), "export default 'other'\n")
    await Bun.write(join(directory, 'config.ts'), "import client from 'client'\nexport default { client }\n")
    const command = [process.execPath, ...selfArguments(), 'evaluate', join(directory, 'config.ts')]
    const child = Bun.spawn(command, { stdin: 'ignore', stdout: 'pipe', stderr: 'inherit' })
    expect(JSON.parse(await new Response(child.stdout).text())).toEqual({ client: 'workers' })
    expect(await child.exited).toBe(0)
  } finally {
    await rm(directory, { recursive: true })
  }
})
