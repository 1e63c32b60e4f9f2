// The program as it is installed now: by the name that this one was started with, since a link may lead to another version by now.
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { resolve } from 'node:path'

export interface Started {
  /** As whoever started it wrote it: a path, or a name to be looked up in PATH. */
  argv0: string
  path: string
  /** The file itself, links followed. */
  execPath: string
}

export async function installedProgram({ argv0, path, execPath }: Started): Promise<string> {
  const places = argv0.includes('/') ? [''] : path.split(':').filter((place) => place !== '')
  for (const place of argv0 === '' ? [] : places) {
    const file = resolve(place, argv0)
    const isThere = await access(file, constants.X_OK).then(
      () => true,
      () => false,
    )
    if (isThere) return file
  }
  return execPath
}
