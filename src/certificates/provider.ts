// Runs in a child process of its own: asks a module of the operator's for the certificate of a name, reads the files that it
// names, and prints the answer as JSON.
import { pathToFileURL } from 'node:url'
import { readText } from './pem.ts'
import type { ProviderAnswer } from './module-source.ts'
import { wordsOf } from './source.ts'

/** One line of JSON. */
export async function provide(module: string, name: string): Promise<string> {
  return JSON.stringify(await provided(module, name).catch((error: unknown) => ({ error: wordsOf(error) })))
}

async function provided(module: string, name: string): Promise<ProviderAnswer> {
  const { default: give } = (await import(pathToFileURL(module).href)) as { default?: unknown }
  if (typeof give !== 'function')
    throw new Error('its default export is no function: write "export default (name) => ({ cert, key })"')
  return answerOf(await give(name))
}

async function answerOf(given: unknown): Promise<ProviderAnswer> {
  if (given === 'acme') return given
  const { cert, key } = (given ?? {}) as { cert?: unknown; key?: unknown }
  if (typeof cert !== 'string' || typeof key !== 'string')
    throw new Error('it gave neither { cert, key } nor "acme"; both are PEM texts or paths of files')
  const [certText, keyText] = await Promise.all([textOf('certificate', cert), textOf('key', key)])
  return { cert: certText, key: keyText }
}

const textOf = async (what: string, given: string) => (given.includes('-----BEGIN ') ? given : readText(what, given))
