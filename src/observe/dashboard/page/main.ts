// The dashboard: one page of views, each of which asks the gateway while it is shown.
import { getCertificates, getConnections, getRoutes, getStatus, getTargets, logOut, ApiError } from './api.ts'
import { connectionTable } from './connections.ts'
import { byId, setText } from './dom.ts'
import { EventList } from './events.ts'
import { duration } from './format.ts'
import { certificateTable, targetTable } from './lists.ts'
import { Overview } from './overview.ts'
import { poll } from './poll.ts'
import { themeButton } from './theme.ts'

const VIEWS = ['overview', 'connections', 'targets', 'certificates', 'events'] as const
type View = (typeof VIEWS)[number]
const [LIVE_MS, TARGETS_MS, CERTIFICATES_MS] = [2000, 3000, 30_000]
const NOT_FOUND = 404

const condition = byId('condition')
const failures = new Map<string, Error>()
let good = ''

/** @param what is asked for. null: it was answered. */
function answered(what: string, error: Error | null) {
  if (error) failures.set(what, error)
  else failures.delete(what)
  const [failure] = failures.values()
  const isUnreachable = failure && !(failure instanceof ApiError)
  setText(condition, failure ? (isUnreachable ? 'No answer from the gateway; trying again' : failure.message) : good)
  condition.dataset.tone = failure ? 'bad' : ''
}

// ---- views ----

let shown: View = 'overview'

function showView() {
  const wanted = location.hash.slice(1)
  shown = VIEWS.find((view) => view === wanted) ?? 'overview'
  for (const view of VIEWS) byId(view).hidden = view !== shown
  for (const link of document.querySelectorAll<HTMLAnchorElement>('nav a'))
    if (link.hash === `#${shown}`) link.setAttribute('aria-current', 'page')
    else link.removeAttribute('aria-current')
  events.listen(shown === 'events' && !document.hidden)
  for (const one of polls) one.again()
}

const overview = new Overview()
const events = new EventList(byId('events'))
const targets = targetTable(byId('targets'))
const certificates = certificateTable(byId('certificates'))
const connections = connectionTable(
  byId('connections'),
  () => renewConnections.again(),
  // What is gone cannot be closed any more, and that is well.
  (error) =>
    error instanceof ApiError && error.status === NOT_FOUND ? renewConnections.again() : answered('close', error),
)

const live = poll(
  LIVE_MS,
  () => true,
  async () => {
    const [status, routes] = await Promise.all([getStatus(), getRoutes()])
    overview.show(status, routes)
    setText(byId('version'), status.version)
    good = `${status.routes.active} of ${status.routes.total} routes active, up ${duration((Date.now() - Date.parse(status.startedAt)) / 1000)}`
  },
  (error) => answered('status', error),
)
const renewConnections = poll(
  LIVE_MS,
  () => shown === 'connections',
  async () => {
    connections.show(await getConnections())
    failures.delete('close')
  },
  (error) => answered('connections', error),
)
const renewTargets = poll(
  TARGETS_MS,
  () => shown === 'targets' || shown === 'overview',
  async () => {
    const list = await getTargets()
    targets.show(list)
    overview.showTargets(list)
  },
  (error) => answered('targets', error),
)
const renewCertificates = poll(
  CERTIFICATES_MS,
  () => shown === 'certificates',
  async () => certificates.show(await getCertificates()),
  (error) => answered('certificates', error),
)
const polls = [live, renewConnections, renewTargets, renewCertificates]

// ---- what the page itself does ----

themeButton(byId<HTMLButtonElement>('theme'), () => overview.redraw())
byId('logout').addEventListener('click', () => void logOut().catch((error: Error) => answered('logout', error)))
document.querySelector('.skip')!.addEventListener('click', (event) => {
  event.preventDefault()
  byId('main').focus()
})
addEventListener('hashchange', showView)
document.addEventListener('visibilitychange', showView)
showView()
