// The keys of the stores: which are good, and how one becomes a path that cannot leave the store's directory.
import { STORE_KEY_CHARACTERS_MAX } from '../base/limits.ts'

/** Dots stand inside of words only, so neither ".", ".." nor a hidden file can be meant. */
const SEGMENT = /^(?!\.)(?!.*\.\.)[a-z0-9._*:-]+(?<!\.)$/
/** File names have 255 bytes at most, a host name has 253: what is longer goes on in a directory. */
const PIECE = 200

export function checkKey(key: string): void {
  const good = key.length <= STORE_KEY_CHARACTERS_MAX && key.split('/').every((segment) => SEGMENT.test(segment))
  if (!good) throw new Error(`Cannot use ${JSON.stringify(key.slice(0, 100))} as a key of the store`)
}

/** `kind` tells files from directories, for a key may go on below another one: keys have no capitals. "*" would mean something to the
 *  shell of who cleans up. */
export const keyToPath = (key: string, kind: 'ENTRY' | 'LOCK'): string =>
  key
    .split('/')
    .map((segment) => segment.replaceAll('*', '%2a').replace(new RegExp(`.{${PIECE}}(?=.)`, 'g'), '$&.MORE/'))
    .join('/') + `.${kind}`

/** The key of an entry; undefined for any other file. */
export function pathToKey(path: string): string | undefined {
  if (!path.endsWith('.ENTRY')) return undefined
  const key = path.slice(0, -'.ENTRY'.length).replaceAll('.MORE/', '').replaceAll('%2a', '*')
  try {
    checkKey(key)
    return keyToPath(key, 'ENTRY') === path ? key : undefined
  } catch {
    return undefined // somebody else's file
  }
}
