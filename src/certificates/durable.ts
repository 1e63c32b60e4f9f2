// Writing a secret so that a reader finds it whole or not at all, whatever crashes in between.
import { randomUUID } from 'node:crypto'
import { chmod, link, mkdir, open, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

/** A directory only its owner can enter, also where it existed with other permissions. */
export async function privateDirectory(path: string): Promise<void> {
  try {
    // Apart, because the mode would also be given to every directory above that is missing.
    await mkdir(dirname(path), { recursive: true })
    await mkdir(path, { recursive: true, mode: 0o700 })
    await chmod(path, 0o700)
  } catch (cause) {
    throw new Error(`Cannot make directory ${path}: ${(cause as Error).message}`, { cause })
  }
}

/** Creates `path` (0600) with `text`, durably. False when the file is there already: it is never replaced, so of two processes
 * that start at the same time both go on with what the first one wrote. */
export async function createFile(path: string, text: string): Promise<boolean> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}`)
  try {
    await writeSynced(temporary, text)
    // link, not rename: it is as atomic, and refuses where rename would replace.
    await link(temporary, path)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw new Error(`Cannot write ${path}: ${(cause as Error).message}`, { cause })
  } finally {
    await rm(temporary, { force: true })
  }
  await syncDirectory(dirname(path))
  return true
}

/** Puts `text` at `path` (0600), durably, in place of what is there. `temporaries`: a directory of the same file system, that may be
 * emptied at any time. Errors are those of the system, with their code. */
export async function replaceFile(path: string, text: string, temporaries: string): Promise<void> {
  const temporary = join(temporaries, randomUUID())
  try {
    await writeSynced(temporary, text)
    await rename(temporary, path)
  } catch (cause) {
    await rm(temporary, { force: true })
    throw cause
  }
  await syncDirectory(dirname(path))
}

/** A name is only on disk when its directory is. */
export async function syncDirectory(path: string): Promise<void> {
  const entry = await open(path, 'r')
  try {
    await entry.sync()
  } finally {
    await entry.close()
  }
}

async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, 'wx', 0o600)
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
}
