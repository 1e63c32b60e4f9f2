// The CA files that routes name, as text: a worker has given up the right to read them.
import { readFile } from 'node:fs/promises'
import type { Log } from '../observe/log.ts'
import type { UserRoute } from '../plan/types.ts'
import { ProblemsError } from './changes.ts'

export class Authorities {
  /** As they were read last, by file: what is in use is no reason for a change to fail, or for a CA to find no answer. */
  #texts = new Map<string, string>()

  constructor(private readonly log: Log) {}

  /** The routes with the files' contents in place of their names. Rejects when one cannot be read that has never been, and names it.
   *  @param all there are no others. */
  async read(routes: UserRoute[], all = false): Promise<UserRoute[]> {
    const used = new Map<string, string>()
    const read = async (route: string, file: string | null, field: string) => {
      if (file === null) return null
      const text = await pem(file, `routes.${route}.action.tls.${field}`).catch((error: Error) => {
        const before = this.#texts.get(file)
        if (before === undefined) throw error
        this.log('warn', `${error.message}; what it held before is used on`)
        return before
      })
      used.set(file, text)
      return text
    }
    const done = await Promise.all(
      routes.map(async (route) => {
        const tls = 'tls' in route.action ? route.action.tls : null
        if (!tls || (tls.clientCa === null && tls.upstream.ca === null)) return route
        const [clientCa, ca] = await Promise.all([
          read(route.name, tls.clientCa, 'clientCa'),
          read(route.name, tls.upstream.ca, 'upstream.ca'),
        ])
        const action = { ...route.action, tls: { ...tls, clientCa, upstream: { ...tls.upstream, ca } } }
        return { ...route, action } as UserRoute
      }),
    )
    this.#texts = all ? used : new Map([...this.#texts, ...used])
    return done
  }
}

async function pem(file: string, path: string): Promise<string> {
  try {
    const text = await readFile(file, 'utf8')
    if (text.includes('-----BEGIN CERTIFICATE-----')) return text
    throw new Error('holds no PEM certificate')
  } catch (error) {
    const why = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'does not exist' : (error as Error).message
    throw new ProblemsError([
      { path, message: `${file} ${why}`, remedy: 'name a PEM file with the certificates of the CA' },
    ])
  }
}
