// Plots over time, with the numbers in words beside each: of now, or of the moment that is pointed at.
import uPlot from 'uplot'
import { element, setText } from './dom.ts'

export interface Series {
  name: string
  /** Names its colour and its dashes in the style sheet and below: lines are told apart without colours too. */
  kind: 'first' | 'second' | 'third'
}

export interface PlotOptions {
  title: string
  series: Series[]
  format(value: number): string
  /** Points kept. Above: the oldest goes. */
  pointsMax: number
  /** The scale reaches to here at least: noise near zero is not drawn large. */
  least: number
  /** Says why there is no line yet. */
  empty: string
}

const HEIGHT = 150
const DASHES: Record<Series['kind'], number[]> = { first: [], second: [6, 3], third: [2, 3] }
/** Below, seconds tell the marks of the axis apart. */
const MINUTE_S = 60
const time = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' })

export class Plot {
  /** The times in seconds, then each series. */
  #data: number[][]
  readonly #values: HTMLElement[]
  readonly #when = element('span', { class: 'quiet' })
  readonly #canvas = element('div', { class: 'canvas', 'aria-hidden': 'true' })
  readonly #empty: HTMLElement
  readonly #plot: uPlot
  readonly #options: PlotOptions

  constructor(where: HTMLElement, options: PlotOptions) {
    this.#options = options
    const { title, series, format } = options
    this.#data = [[], ...series.map(() => [])]
    this.#values = series.map(() => element('b', {}))
    const keys = series.map(({ name, kind }, i) =>
      element('span', { class: `key ${kind}` }, element('i', { 'aria-hidden': 'true' }), name, ' ', this.#values[i]!),
    )
    const canvas = this.#canvas
    this.#empty = element('p', { class: 'empty' }, options.empty)
    where.append(
      element('figcaption', {}, element('h2', {}, title), this.#when, element('span', { class: 'keys' }, ...keys)),
      canvas,
      this.#empty,
    )
    // A colour of the style sheet is known when it has come to an element.
    const colour = (kind: string) => () => getComputedStyle(where.querySelector(`.${kind} i`)!).color
    const line = () => getComputedStyle(canvas).borderTopColor
    const words = () => getComputedStyle(canvas).color
    const font = () => `11px ${getComputedStyle(canvas).fontFamily}`
    const axis = { stroke: words, grid: { stroke: line, width: 1 }, ticks: { show: false } }
    this.#plot = new uPlot(
      {
        width: 300,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 26, 0, 0],
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        scales: { y: { range: (_plot, _min, max) => [0, Math.max(options.least, max * 1.1)] } },
        axes: [
          {
            ...axis,
            font: font(),
            size: 24,
            space: 70,
            values: (_plot, times, _axis, _space, every) =>
              times.map((at) => time.format(at * 1000).slice(0, every < MINUTE_S ? 8 : 5)),
          },
          {
            ...axis,
            font: font(),
            size: 68,
            space: 36,
            values: (_plot, values) => values.map((value) => format(value)),
          },
        ],
        series: [
          {},
          ...series.map(({ kind }) => ({
            stroke: colour(kind),
            width: 1.5,
            dash: DASHES[kind],
            points: { show: false },
          })),
        ],
        hooks: { setCursor: [() => this.#say()] },
      },
      this.#data as unknown as uPlot.AlignedData,
      canvas,
    )
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry!.contentRect.width)
      // Nothing, while it is not shown.
      if (width > 0) this.#plot.setSize({ width, height: HEIGHT })
    }).observe(canvas)
    this.#draw()
  }

  /** One more moment. */
  add(seconds: number, values: number[]) {
    this.#data[0]!.push(seconds)
    values.forEach((value, i) => this.#data[i + 1]!.push(value))
    if (this.#data[0]!.length > this.#options.pointsMax) for (const list of this.#data) list.shift()
    this.#draw()
  }

  /** All moments anew. */
  set(data: number[][]) {
    this.#data = data
    this.#draw()
  }

  #draw() {
    this.#empty.hidden = this.#data[0]!.length > 1
    this.#canvas.hidden = !this.#empty.hidden
    this.#plot.setData(this.#data as unknown as uPlot.AlignedData)
    this.#say()
  }

  /** With the colours as they are now. */
  redraw() {
    this.#plot.redraw(false)
  }

  #say() {
    const [times, ...series] = this.#data
    const pointed = this.#plot.cursor.idx ?? null
    const at = pointed ?? times!.length - 1
    setText(this.#when, pointed === null || times![at] === undefined ? '' : `at ${time.format(times![at] * 1000)}`)
    series.forEach((list, i) => setText(this.#values[i]!, at < 0 ? '–' : this.#options.format(list[at] ?? 0)))
  }
}
