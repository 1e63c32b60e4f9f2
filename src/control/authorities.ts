// The CA files that routes name, as text: a worker has given up the right to read them.
import { readFile } from 'node:fs/promises'
import type { UserRoute } from '../plan/types.ts'
import { ProblemsError } from './changes.ts'

/** The routes with the files' contents in place of their names. Rejects when one cannot be read, and names it. */
export function readAuthorities(routes: UserRoute[]): Promise<UserRoute[]> {
  return Promise.all(
    routes.map(async (route) => {
      const tls = 'tls' in route.action ? route.action.tls : null
      if (!tls || (tls.clientCa === null && tls.upstream.ca === null)) return route
      const read = (file: string | null, field: string) =>
        file === null ? null : pem(file, `routes.${route.name}.action.tls.${field}`)
      const [clientCa, ca] = await Promise.all([read(tls.clientCa, 'clientCa'), read(tls.upstream.ca, 'upstream.ca')])
      const action = { ...route.action, tls: { ...tls, clientCa, upstream: { ...tls.upstream, ca } } }
      return { ...route, action } as UserRoute
    }),
  )
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
