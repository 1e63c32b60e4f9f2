// What happens, as it happens: the newest first. A flood is shown in part and counted in full.
import { button, element, setText } from './dom.ts'
import { bytes, count } from './format.ts'

/** A page that is looked at for hours keeps this many. */
const EVENTS_MAX = 300
const KINDS = ['opened', 'changed', 'closed', 'refused', 'route', 'target', 'lost'] as const
type Kind = (typeof KINDS)[number]
/** Of these there is one for each connection. */
const MANY: Kind[] = ['opened', 'changed']

type Happened = { event: Kind } & Record<string, unknown>
const time = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' })

export class EventList {
  #source: EventSource | undefined
  #waiting: Happened[] = []
  #seen = 0
  #isPaused = false
  readonly #hidden = new Set<Kind>(MANY)
  readonly #list = element('ol', { class: 'events', role: 'log', 'aria-live': 'off', 'aria-label': 'Events' })
  readonly #count = element('span', { class: 'quiet', role: 'status' })
  readonly #empty = element('p', { class: 'empty' }, 'Nothing has happened since you look.')

  constructor(where: HTMLElement) {
    const pause = button('Pause', () => {
      this.#isPaused = !this.#isPaused
      pause.textContent = this.#isPaused ? 'Go on' : 'Pause'
    })
    const kinds = KINDS.map((kind) => {
      const box = element('input', { type: 'checkbox' })
      box.checked = !this.#hidden.has(kind)
      box.addEventListener('change', () => this.#hidden[box.checked ? 'delete' : 'add'](kind))
      return element('label', {}, box, kind)
    })
    where.append(
      element(
        'div',
        { class: 'tools' },
        element('h2', {}, 'Events'),
        this.#count,
        element('span', { class: 'buttons' }, pause),
      ),
      element('fieldset', { class: 'kinds' }, element('legend', { class: 'hidden' }, 'Show'), ...kinds),
      this.#list,
      this.#empty,
    )
  }

  /** Listening costs the gateway something: only while it is looked at. */
  listen(isWanted: boolean) {
    if (isWanted === (this.#source !== undefined)) return
    this.#source?.close()
    this.#source = isWanted ? new EventSource('/v1/events') : undefined
    setText(this.#count, isWanted ? 'Connecting' : '')
    if (!this.#source) return
    this.#source.addEventListener('open', () => setText(this.#count, 'Listening'))
    this.#source.addEventListener('error', () => {
      const isRefused = this.#source?.readyState === EventSource.CLOSED
      setText(this.#count, isRefused ? 'Refused: too many listen already' : 'Interrupted; trying again')
    })
    for (const kind of KINDS)
      this.#source.addEventListener(kind, (message) => this.#take(JSON.parse(message.data as string) as Happened))
  }

  #take(happened: Happened) {
    this.#seen++
    if (this.#isPaused || this.#hidden.has(happened.event)) return
    if (this.#waiting.length === 0) requestAnimationFrame(() => this.#show())
    this.#waiting.push(happened)
    if (this.#waiting.length > EVENTS_MAX) this.#waiting.shift()
  }

  /** Once for each picture, however many came in between. */
  #show() {
    const now = time.format(Date.now())
    this.#list.prepend(...this.#waiting.reverse().map((happened) => lineOf(happened, now)))
    this.#waiting = []
    while (this.#list.children.length > EVENTS_MAX) this.#list.lastElementChild!.remove()
    this.#empty.hidden = true
    setText(this.#count, `${count(this.#seen)} so far`)
  }
}

const lineOf = (happened: Happened, now: string) =>
  element(
    'li',
    {},
    element('time', {}, now),
    element('b', { 'data-kind': happened.event }, happened.event),
    element('span', {}, words(happened)),
  )

function words({ event, ...what }: Happened): string {
  const { client, listener, target, route, carrier, reason, state, count: many, serverName } = what
  switch (event) {
    case 'opened':
    case 'changed':
    case 'closed': {
      const way = `${client} → ${listener} → ${target ?? 'no target'}`
      const name = serverName ? `, ${serverName}` : ''
      const end =
        event === 'closed' ? `: ${reason}, ${bytes(Number(what.bytesIn))} in, ${bytes(Number(what.bytesOut))} out` : ''
      return `${way} (${route}, ${carrier}${name})${end}`
    }
    case 'refused':
      return `${many} of route ${route}: ${reason}${what.observed ? ' (observed only)' : ''}`
    case 'route':
      return `${route}: ${[state, carrier, reason].filter(Boolean).join(', ')}`
    case 'target':
      return `${target} of route ${route} is ${what.up ? 'up' : 'down'}: ${what.why}`
    case 'lost':
      return `${many} events were lost: more happens than this page can take`
  }
}
