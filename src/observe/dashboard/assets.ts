// The files of the dashboard as a browser gets them: bundled into the compiled program when it is built, and from a
// checkout when they are first needed.
import { basename } from 'node:path'
import index from './page/index.html'
import login from './page/login.html'

export interface Asset {
  bytes: Uint8Array<ArrayBuffer>
  headers: Record<string, string>
  /** Needed to log in. */
  isPublic: boolean
}
/** By path. */
export type Assets = Map<string, Asset>

/** What an import of HTML is, once it is compiled (bun-types know it from a checkout only). */
interface Page {
  index: string
  files?: { path: string }[]
}

/** The names of the other files contain a hash of what is in them. */
const KEPT = 'private, max-age=31536000, immutable'

export async function dashboard(): Promise<Assets> {
  const [own, toLogIn] = await Promise.all([files(index as Page, '/'), files(login as Page, '/login')])
  const assets: Assets = new Map()
  for (const [path, asset] of own) assets.set(path, { ...asset, isPublic: false })
  for (const [path, asset] of toLogIn) assets.set(path, { ...asset, isPublic: true })
  return assets
}

/** @param at where the page itself is. */
async function files(page: Page, at: string): Promise<[string, Omit<Asset, 'isPublic'>][]> {
  const parts: { path: string; file: Blob }[] = page.files
    ? page.files.map(({ path }) => ({ path, file: Bun.file(path) }))
    : (await Bun.build({ entrypoints: [page.index], target: 'browser', minify: true, publicPath: '/' })).outputs.map(
        (file) => ({ path: file.path, file }),
      )
  return Promise.all(
    parts.map(async ({ path, file }) => {
      const isPage = path.endsWith('.html')
      const headers: Record<string, string> = { 'content-type': file.type }
      if (!isPage) headers['cache-control'] = KEPT
      return [isPage ? at : `/${basename(path)}`, { bytes: new Uint8Array(await file.arrayBuffer()), headers }]
    }),
  )
}
