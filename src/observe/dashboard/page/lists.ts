// Targets with their health, and certificates with their life.
import type { Certificate, Target } from './api.ts'
import { bytes, count, duration, percent } from './format.ts'
import { Table } from './table.ts'

const TARGET_TONES = { up: 'good', down: 'bad', draining: 'warn', drained: 'warn' } as const
const CERTIFICATE_TONES = { valid: 'good', expiring: 'warn', expired: 'bad', pending: 'warn', failed: 'bad' } as const

export const targetTable = (where: HTMLElement) =>
  new Table<Target>(where, {
    title: 'Targets',
    empty: 'No route forwards to a target.',
    sortedBy: 'Route',
    key: ({ route, target }) => `${route} ${target}`,
    columns: [
      { title: 'Route', text: ({ route }) => route },
      { title: 'Target', text: ({ target, configured }) => (configured ? `${target} (${configured})` : target) },
      { title: 'State', text: ({ state }) => state, tone: ({ state }) => TARGET_TONES[state] },
      { title: 'Last error', text: ({ lastError }) => lastError ?? '–', hint: ({ lastError }) => lastError ?? '' },
      { title: 'Share', text: ({ share }) => percent(share), order: ({ share }) => share, numeric: true },
      { title: 'Open', text: (one) => count(one.connections), order: (one) => one.connections, numeric: true },
      { title: 'Total', text: ({ total }) => count(total), order: ({ total }) => total, numeric: true },
      { title: 'In', text: ({ bytesIn }) => bytes(bytesIn), order: ({ bytesIn }) => bytesIn, numeric: true },
      { title: 'Out', text: ({ bytesOut }) => bytes(bytesOut), order: ({ bytesOut }) => bytesOut, numeric: true },
    ],
  })

const leftOf = ({ expiresInSeconds }: Certificate) => expiresInSeconds ?? Infinity
const leftText = (one: Certificate) =>
  one.expiresInSeconds === undefined ? '–' : leftOf(one) <= 0 ? 'expired' : duration(leftOf(one))

export const certificateTable = (where: HTMLElement) =>
  new Table<Certificate>(where, {
    title: 'Certificates',
    empty: 'The gateway has no certificates: no route ends TLS.',
    sortedBy: 'Expires in',
    key: ({ name, source }) => `${name} ${source}`,
    columns: [
      { title: 'Name', text: ({ name }) => name, hint: ({ names }) => names.join(', ') },
      { title: 'Routes', text: ({ routes }) => routes.join(', ') },
      { title: 'Source', text: ({ source }) => source },
      { title: 'State', text: ({ state }) => state, tone: ({ state }) => CERTIFICATE_TONES[state] },
      { title: 'Keys', text: ({ keys }) => keys.join(', ') },
      { title: 'Issuer', text: ({ issuer }) => issuer ?? '–' },
      {
        title: 'Expires in',
        text: leftText,
        order: leftOf,
        numeric: true,
        hint: ({ notAfter }) => notAfter ?? '',
      },
      {
        title: 'Last error',
        text: ({ lastError, nextAttempt }) =>
          lastError ? `${lastError}${nextAttempt ? `; next attempt ${nextAttempt}` : ''}` : '–',
        tone: ({ lastError }) => (lastError ? 'bad' : ''),
        hint: ({ lastError }) => lastError ?? '',
      },
    ],
  })
