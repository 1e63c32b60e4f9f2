// Keeps freshly installed packages from starting their services: Debian's maintainer scripts ask /usr/sbin/policy-rc.d, and
// 101 means no. Whatever stood there before is moved aside and moved back: mode, owner and link come back with it.
import { lstat, readFile, rename, unlink, writeFile } from 'node:fs/promises'

const MARK = '# Temporary, written by sluice; process '

/** Runs `install` while no service can start. `path` is another one in tests only. */
export async function withoutServices<T>(install: () => Promise<T>, path = '/usr/sbin/policy-rc.d'): Promise<T> {
  const aside = `${path}.before-sluice`
  await recover(path, aside)
  const stoodThere = await exists(path)
  if (stoodThere) await rename(path, aside)
  const script = `#!/bin/sh\n${MARK}${await identity(process.pid)}\nexit 101\n`
  // 'wx': two installations at once must not take each other's script for what stood there before.
  await writeFile(path, script, { mode: 0o755, flag: 'wx' }).catch(async (error) => {
    if (stoodThere && !(await exists(path))) await rename(aside, path)
    throw error
  })
  try {
    return await install()
  } finally {
    if (stoodThere) await rename(aside, path)
    else await unlink(path)
  }
}

/** Undoes what a killed installation left behind; refuses while that installation lives. */
async function recover(path: string, aside: string): Promise<void> {
  const text = await readFile(path, 'utf8').catch(() => '')
  const owner = text.split('\n').find((line) => line.startsWith(MARK))
  if (owner !== undefined) {
    const [pid] = owner.slice(MARK.length).split(' ')
    if (owner === MARK + (await identity(Number(pid))))
      throw new Error(`Cannot install packages: process ${pid} is installing some already; try again when it is done`)
    await unlink(path)
  }
  // Killed between the two steps, or before the way back: what stood there before is still aside.
  if (!(await exists(path)) && (await exists(aside))) await rename(aside, path)
}

/** A process id is used again some day; with the moment of its start (field 22, after the name in brackets) it is not. */
async function identity(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  return `${pid} ${stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]}`
}

/** Also true for a link that leads nowhere. */
const exists = (path: string) =>
  lstat(path).then(
    () => true,
    () => false,
  )
