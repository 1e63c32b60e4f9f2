// Patterns of host names: which names a pattern stands for, and which of two patterns is the narrower one. Pure.
import { isHostName } from './addresses.ts'

/** A host name in which "*" may stand anywhere, or "*" alone. */
export const isNamePattern = (text: string) =>
  text === '*' || (!text.includes('**') && isHostName(text.replaceAll('*', 'a')))

/** "*" alone is any name or none. Elsewhere it stands for at least one character: at the beginning or the end of the pattern
 *  for any, so that "*.example.com" is every name below example.com and "example.*" that name under every suffix; in the
 *  middle for those of one label ("api-*.example.com"). Both are in lower case. */
export function matchesName(pattern: string, name: string | undefined): boolean {
  if (pattern === '*') return true
  if (name === undefined) return false
  const star = pattern.lastIndexOf('*')
  if (star < 0) return pattern === name
  if (name.length < pattern.length || !name.endsWith(pattern.slice(star + 1))) return false
  return star === 0 || (name.startsWith(pattern.slice(0, pattern.indexOf('*'))) && isSpelled(pattern, name))
}

/** In time proportional to both lengths, whatever the pattern: names come from clients. */
function isSpelled(pattern: string, name: string): boolean {
  const last = pattern.length - 1
  // at[i]: what was read of the name is spelled by the first i characters of the pattern.
  let at = new Uint8Array(pattern.length + 1)
  at[0] = 1
  for (const char of name) {
    const next = new Uint8Array(pattern.length + 1)
    for (let i = 0; i <= last; i++) {
      const isStar = pattern[i] === '*'
      const takes = isStar ? char !== '.' || i === 0 || i === last : pattern[i] === char
      if (takes && (at[i] === 1 || (isStar && at[i + 1] === 1))) next[i + 1] = 1
    }
    at = next
  }
  return at[last + 1] === 1
}

/** No host name is as long. */
const EXACT = 256

/** How narrow a pattern is: exact names before wildcards, wildcards by how much they say, any name last. */
export function narrowness(pattern: string): number {
  return pattern.includes('*') ? pattern.replaceAll('*', '').length : EXACT
}
