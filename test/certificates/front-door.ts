// The front door of the certificates as tests have it: what it tells is kept, the clock is theirs.
import { Certificates, type CertificateEvent, type CertificatesOptions } from '../../src/certificates/index.ts'

export function frontDoor(stateDir: string, more: Partial<CertificatesOptions> = {}) {
  const events: CertificateEvent[] = []
  const changed: string[][] = []
  const log: string[] = []
  const certificates = new Certificates({
    stateDir,
    openAcme: null,
    provide: () => Promise.reject(new Error('no module is called here')),
    log: (level, message) => void log.push(`${level} ${message}`),
    event: (event) => void events.push(event),
    changed: (routes) => void changed.push(routes),
    ...more,
  })
  return { certificates, events, changed, log, [Symbol.asyncDispose]: () => certificates.stop() }
}

/** Files and processes decide how long it takes. */
export async function until(condition: () => boolean, what: string, msMax = 10_000) {
  const end = performance.now() + msMax
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not within ${msMax} ms: ${what}`)
    await Bun.sleep(10)
  }
}
