// Whatever policy-rc.d a machine had before packages were installed, it has afterwards, however the installation ended.
import { afterEach, beforeEach, expect, test } from 'bun:test'
import { chmod, lstat, mkdtemp, readdir, readFile, readlink, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { withoutServices } from '../../src/provision/services.ts'

let folder: string
let path: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sluice-services-'))
  path = join(folder, 'policy-rc.d')
})
afterEach(() => rm(folder, { recursive: true }))

const answer = async () => await Bun.spawn([path, 'nginx', 'start']).exited
const failing = () => Promise.reject(new Error('apt failed'))

test('while it installs, no service may start', async () => {
  expect(await withoutServices(answer, path)).toBe(101)
})

test('nothing stood there, nothing stands there', async () => {
  await withoutServices(answer, path)
  await expect(withoutServices(failing, path)).rejects.toThrow('apt failed')
  expect(await readdir(folder)).toEqual([])
})

test('a file comes back with its text and mode, also after a failure', async () => {
  await writeFile(path, '#!/bin/sh\nexit 104\n')
  await chmod(path, 0o751)
  expect(await withoutServices(answer, path)).toBe(101)
  await expect(withoutServices(failing, path)).rejects.toThrow('apt failed')
  expect(await readdir(folder)).toEqual(['policy-rc.d'])
  expect(await readFile(path, 'utf8')).toBe('#!/bin/sh\nexit 104\n')
  expect((await lstat(path)).mode & 0o777).toBe(0o751)
})

test('a link comes back as a link, even one that leads nowhere', async () => {
  await symlink('/nowhere/policy', path)
  await withoutServices(answer, path)
  expect(await readlink(path)).toBe('/nowhere/policy')
})

test('what a killed installation left behind is undone first', async () => {
  await writeFile(path, '#!/bin/sh\nexit 104\n', { mode: 0o755 })
  const child = Bun.spawn(
    [
      process.execPath,
      '-e',
      `import { withoutServices } from '${join(import.meta.dir, '../../src/provision/services.ts')}'
       await withoutServices(() => { process.kill(process.pid, 'SIGKILL') }, '${path}')`,
    ],
    { stdio: ['ignore', 'inherit', 'inherit'] },
  )
  await child.exited
  expect(child.signalCode).toBe('SIGKILL')
  expect(await answer()).toBe(101)

  await withoutServices(answer, path)
  expect(await answer()).toBe(104)
  expect(await readdir(folder)).toEqual(['policy-rc.d'])
})

test('a second installation at the same time is refused and disturbs nothing', async () => {
  await withoutServices(async () => {
    await expect(withoutServices(answer, path)).rejects.toThrow(`process ${process.pid} is installing`)
    expect(await answer()).toBe(101)
  }, path)
  expect(await readdir(folder)).toEqual([])
})
