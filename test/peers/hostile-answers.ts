// What a gateway would answer if whoever is behind the network could choose every text: names, server names, errors.

export const HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
const CONNECTIONS = 5000

/** @param real a route as the API tells of it: what is no text is taken from there. @returns answers by the last part of the path. */
export function hostileAnswers(real: object): { answers: Record<string, object>; events: string } {
  const many = Array.from({ length: CONNECTIONS }, (_, i) => ({
    ...{ id: `h${i}`, route: HOSTILE, carrier: 'user', client: `10.0.0.1:${i}`, listener: HOSTILE, target: HOSTILE },
    ...{ serverName: HOSTILE, state: 'open', openedAt: new Date().toISOString(), bytesIn: i, bytesOut: 0 },
  }))
  const routes = [{ ...real, name: HOSTILE, state: 'failed', reason: HOSTILE }]
  const target = { target: HOSTILE, configured: HOSTILE, state: 'down', lastError: HOSTILE, share: 0, connections: 0 }
  const certificate = {
    name: HOSTILE,
    names: [HOSTILE],
    routes: [HOSTILE],
    source: HOSTILE,
    state: HOSTILE,
    keys: [HOSTILE],
  }
  const answers: Record<string, object> = {
    routes: { routes },
    connections: { connections: many },
    targets: { targets: [{ route: HOSTILE, total: 0, bytesIn: 0, bytesOut: 0, ...target }] },
    certificates: {
      certificates: [
        {
          ...certificate,
          issuer: HOSTILE,
          notAfter: HOSTILE,
          expiresInSeconds: 1,
          lastError: HOSTILE,
          nextAttempt: null,
        },
      ],
    },
  }
  const events = ['closed', 'refused', 'route', 'target'].map(
    (event) => `event: ${event}\ndata: ${JSON.stringify({ event, ...many[0], reason: HOSTILE, why: HOSTILE })}\n\n`,
  )
  return { answers, events: events.join('') }
}
