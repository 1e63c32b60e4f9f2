// Makes 'sluice', 'sluice/sockets' and 'cloudflare:sockets' importable from any file anywhere: a configuration in /etc has no
// node_modules, the compiled program has none either, and a package of somebody else knows the third name only.
import { plugin } from 'bun'

export function provideModules() {
  plugin({
    name: 'sluice',
    setup(build) {
      build.module('sluice', async () => ({ exports: { ...(await import('./index.ts')) }, loader: 'object' }))
      // At once, and only when somebody asks: packages that are no ES modules require() it, which waits for nothing.
      const sockets = () => require('./sockets.ts') as typeof import('./sockets.ts')
      for (const name of ['sluice/sockets', 'cloudflare:sockets'])
        build.module(name, () => ({ exports: { ...sockets() }, loader: 'object' }))
    },
  })
}

/** What packages ask for before they take their socket code for Workers (node-postgres does), beside the export condition
 *  `workerd`. With any other answer they would open sockets that no limit and no gate of the handler's knows. */
export function presentRuntime() {
  Object.defineProperty(navigator, 'userAgent', { value: 'Cloudflare-Workers', configurable: true })
}
