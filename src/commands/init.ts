// sluice init and sluice schema: a configuration to start from, and what one may contain.
import { writeFile } from 'node:fs/promises'
import { z } from 'zod'
import { configSchema } from '../config/schema.ts'

const STARTER = `// The configuration of sluice. "sluice run --check" validates it, "sluice plan" shows what it would do.
import { defineConfig } from 'sluice'

export default defineConfig({
  routes: [
    {
      // Forwarded: nothing of it has to be read. In the kernel once the target is another machine than this one.
      name: 'web',
      match: { ports: 8080 },
      action: { type: 'forward', targets: [{ host: '127.0.0.1', port: 3000 }] },
    },
    // {
    //   // Passed through by server name: TLS stays between client and target.
    //   name: 'app',
    //   match: { ports: 443, domains: 'app.example.com' },
    //   action: { type: 'forward', targets: [{ host: '10.0.0.5', port: 443 }], tls: { mode: 'passthrough' } },
    // },
    // {
    //   // TLS ends here, with a certificate from files.
    //   name: 'api',
    //   match: { ports: 8443, domains: 'api.example.com' },
    //   action: {
    //     type: 'forward',
    //     targets: [{ host: '10.0.0.6', port: 8000 }],
    //     tls: { mode: 'terminate', certificate: { cert: '/etc/ssl/api.crt', key: '/etc/ssl/api.key' } },
    //   },
    // },
  ],
})
`

export async function init(file: string): Promise<number> {
  try {
    await writeFile(file, STARTER, { flag: 'wx' })
  } catch (error) {
    process.stderr.write(
      `sluice: Cannot write ${file}: ${(error as NodeJS.ErrnoException).code === 'EEXIST' ? 'it exists already' : (error as Error).message}\n`,
    )
    return 1
  }
  process.stdout.write(`wrote ${file}; next: sluice plan --config ${file}\n`)
  return 0
}

export const schema = () =>
  JSON.stringify(z.toJSONSchema(configSchema, { io: 'input', unrepresentable: 'any' }), null, 2)
