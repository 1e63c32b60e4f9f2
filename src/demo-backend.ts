// The backends of "sluice demo": a web server, plain and with TLS of its own, that says whom it sees.
import { chmod, writeFile } from 'node:fs/promises'
import { LocalAuthority } from './certificates/authority.ts'

const DIRECTORY = '/run/sluice-demo'

export async function demoBackend(hostname: string): Promise<void> {
  const authority = await LocalAuthority.open(`${DIRECTORY}/backend`)
  const { cert, key } = await authority.issue(['app.demo.test'])
  await writeFile(`${DIRECTORY}/backend.crt`, cert)
  await chmod(`${DIRECTORY}/backend.crt`, 0o644)
  const answer = (what: string) => (_request: Request, server: Bun.Server<undefined>) => {
    const peer = server.requestIP(_request)
    return new Response(`${what} on ${hostname}, and I see ${peer?.address}:${peer?.port}\n`)
  }
  Bun.serve({ hostname, port: 3000, fetch: answer('I am the plain backend') })
  Bun.serve({ hostname, port: 3443, tls: { cert, key }, fetch: answer('I am the TLS backend') })
}
