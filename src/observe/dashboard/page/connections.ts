// Every live connection, whoever carries it, and the button that ends it.
import { closeConnection, type ConnectionRecord } from './api.ts'
import { confirmed } from './dom.ts'
import { bytes, duration } from './format.ts'
import { Table } from './table.ts'

const ageOf = ({ openedAt }: ConnectionRecord) => (Date.now() - Date.parse(openedAt)) / 1000

/** @param closed one was, or is gone already. */
export function connectionTable(where: HTMLElement, closed: () => void, failed: (error: Error) => void) {
  const close = async ({ id, client, target, route }: ConnectionRecord) => {
    const text = `${client} → ${target ?? 'no target yet'}, route ${route}. Both ends get a reset at once; a client that comes back is served.`
    if (!(await confirmed({ title: 'Close this connection?', text, yes: 'Close it' }))) return
    await closeConnection(id)
    closed()
  }
  return new Table<ConnectionRecord>(where, {
    title: 'Connections',
    empty: 'There are no connections.',
    sortedBy: '-Age',
    key: (record) => record.id,
    action: {
      title: 'Close',
      label: (record) => `Close the connection of ${record.client}`,
      act: (record) => void close(record).catch(failed),
    },
    columns: [
      { title: 'Client', text: (record) => record.client },
      { title: 'Listener', text: (record) => record.listener },
      { title: 'Route', text: (record) => record.route },
      { title: 'Carrier', text: (record) => record.carrier, tone: (record) => record.carrier },
      { title: 'Target', text: (record) => record.target ?? '–' },
      {
        title: 'Server name',
        text: (record) => record.serverName ?? '–',
        hint: ({ tls }) => (tls ? [tls.version, tls.cipher, tls.alpn].filter(Boolean).join(', ') : ''),
      },
      { title: 'State', text: (record) => record.state },
      { title: 'Age', text: (record) => duration(ageOf(record)), order: ageOf, numeric: true },
      { title: 'In', text: (record) => bytes(record.bytesIn), order: (record) => record.bytesIn, numeric: true },
      { title: 'Out', text: (record) => bytes(record.bytesOut), order: (record) => record.bytesOut, numeric: true },
    ],
  })
}
