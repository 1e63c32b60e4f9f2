// Makes 'sluice' and 'sluice/sockets' importable from any file anywhere: a configuration in /etc has no node_modules, and
// the compiled program has none either.
import { plugin } from 'bun'

export function provideModules() {
  plugin({
    name: 'sluice',
    setup(build) {
      build.module('sluice', async () => ({ exports: { ...(await import('./index.ts')) }, loader: 'object' }))
      build.module('sluice/sockets', async () => ({ exports: { ...(await import('./sockets.ts')) }, loader: 'object' }))
    },
  })
}
