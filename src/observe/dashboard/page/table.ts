// A table that is sorted by a click on a column, filtered by words, and shown a page at a time, so that a hundred thousand rows
// are as quick as ten. It is renewed in place: what has the focus keeps it.
import { button, element, setAttribute, setText } from './dom.ts'
import { count } from './format.ts'

export interface Column<Row> {
  title: string
  text(row: Row): string
  /** Default: by its text. */
  order?(row: Row): number | string
  /** Numbers stand below each other. */
  numeric?: boolean
  /** Says with a colour what the text says too. */
  tone?(row: Row): string
  /** Everything, where the text is a part of it. */
  hint?(row: Row): string
}

export interface TableOptions<Row> {
  /** Names it for who does not see it. */
  title: string
  columns: Column<Row>[]
  key(row: Row): string
  /** Says why there is nothing. */
  empty: string
  /** The column that it is sorted by at first; with a minus from the largest on. */
  sortedBy: string
  action?: { title: string; label(row: Row): string; act(row: Row): void }
}

const ROWS_A_PAGE = 50
const ARROWS = { ArrowDown: 1, ArrowUp: -1 } as const
const collator = new Intl.Collator('en', { numeric: true })

interface Shown<Row> {
  line: HTMLTableRowElement
  cells: HTMLTableCellElement[]
  row: Row
}

export class Table<Row> {
  #rows: Row[] = []
  readonly #shown = new Map<string, Shown<Row>>()
  #column: Column<Row>
  #isDescending: boolean
  #words: string[] = []
  #page = 0
  readonly #body = element('tbody', { role: 'rowgroup' })
  readonly #heads = new Map<Column<Row>, HTMLTableCellElement>()
  readonly #count = element('span', { class: 'quiet', role: 'status' })
  readonly #empty = element('p', { class: 'empty', hidden: '' })
  readonly #earlier = button('Previous', () => this.#turn(-1))
  readonly #later = button('Next', () => this.#turn(1))

  constructor(
    where: HTMLElement,
    private readonly options: TableOptions<Row>,
  ) {
    const { title, columns, sortedBy, action } = options
    this.#isDescending = sortedBy.startsWith('-')
    this.#column = columns.find((column) => column.title === sortedBy.replace('-', ''))!
    for (const column of columns) this.#heads.set(column, this.#head(column))
    const heads = [...this.#heads.values()]
    if (action)
      heads.push(
        element('th', { role: 'columnheader', scope: 'col' }, element('span', { class: 'hidden' }, action.title)),
      )
    const filter = element('input', {
      type: 'search',
      'aria-label': `Filter ${title.toLowerCase()}`,
      placeholder: 'Filter',
    })
    filter.addEventListener('input', () => {
      this.#words = filter.value.toLowerCase().split(/\s+/).filter(Boolean)
      this.#page = 0
      this.#render()
    })
    this.#body.addEventListener('keydown', (event) => this.#move(event))
    where.append(
      element(
        'div',
        { class: 'tools' },
        element('h2', {}, title),
        filter,
        this.#count,
        element('span', { class: 'buttons' }, this.#earlier, this.#later),
      ),
      element(
        'table',
        { role: 'table', 'aria-label': title },
        element('thead', { role: 'rowgroup' }, element('tr', { role: 'row' }, ...heads)),
        this.#body,
      ),
      this.#empty,
    )
    this.#render()
  }

  #head(column: Column<Row>): HTMLTableCellElement {
    const sort = button(column.title, () => {
      // Numbers are looked at from the largest on.
      this.#isDescending = this.#column === column ? !this.#isDescending : column.numeric === true
      this.#column = column
      this.#page = 0
      this.#render()
    })
    return element('th', { role: 'columnheader', scope: 'col', class: column.numeric ? 'number' : null }, sort)
  }

  show(rows: Row[]) {
    this.#rows = rows
    this.#render()
  }

  #turn(pages: number) {
    this.#page += pages
    this.#render()
  }

  /** Up and down among what can be done with the rows. */
  #move(event: KeyboardEvent) {
    const step = ARROWS[event.key as keyof typeof ARROWS]
    if (step === undefined) return
    const buttons = [...this.#body.querySelectorAll('button')]
    const next = buttons[buttons.indexOf(event.target as HTMLButtonElement) + step]
    if (!next) return
    event.preventDefault()
    next.focus()
  }

  // ---- what is shown of it ----

  #render() {
    const rows = this.#sorted(this.#filtered())
    const pages = Math.max(1, Math.ceil(rows.length / ROWS_A_PAGE))
    this.#page = Math.min(Math.max(0, this.#page), pages - 1)
    const from = this.#page * ROWS_A_PAGE
    const page = rows.slice(from, from + ROWS_A_PAGE)
    const all = rows.length === this.#rows.length ? '' : `, filtered from ${count(this.#rows.length)}`
    const range = pages === 1 ? '' : `${from + 1}–${from + page.length} of `
    setText(this.#count, `${range}${count(rows.length)}${all}`)
    this.#earlier.disabled = this.#page === 0
    this.#later.disabled = this.#page === pages - 1
    this.#earlier.hidden = this.#later.hidden = pages === 1
    this.#empty.hidden = rows.length > 0
    setText(this.#empty, this.#rows.length > 0 ? 'Nothing matches the filter.' : this.options.empty)
    for (const [column, head] of this.#heads)
      setAttribute(
        head,
        'aria-sort',
        column !== this.#column ? 'none' : this.#isDescending ? 'descending' : 'ascending',
      )
    this.#place(page)
  }

  #filtered(): Row[] {
    if (this.#words.length === 0) return this.#rows
    const { columns } = this.options
    return this.#rows.filter((row) => {
      const text = columns
        .map((column) => column.text(row))
        .join(' ')
        .toLowerCase()
      return this.#words.every((word) => text.includes(word))
    })
  }

  #sorted(rows: Row[]): Row[] {
    const column = this.#column
    const sign = this.#isDescending ? -1 : 1
    const orders = rows.map((row) => ({ row, order: (column.order ?? column.text).call(column, row) }))
    const compare = (a: number | string, b: number | string) =>
      typeof a === 'number' && typeof b === 'number' ? a - b : collator.compare(String(a), String(b))
    return orders.sort((a, b) => sign * compare(a.order, b.order)).map(({ row }) => row)
  }

  #place(page: Row[]) {
    const focused = document.activeElement
    const keys = new Set<string>()
    page.forEach((row, i) => {
      const key = this.options.key(row)
      keys.add(key)
      const { line } = this.#line(key, row)
      if (this.#body.children[i] !== line) this.#body.insertBefore(line, this.#body.children[i] ?? null)
    })
    for (const [key, { line }] of this.#shown)
      if (!keys.has(key)) {
        line.remove()
        this.#shown.delete(key)
      }
    // A row that has moved has lost it.
    if (focused instanceof HTMLElement && focused !== document.activeElement && focused.isConnected) focused.focus()
  }

  #line(key: string, row: Row): Shown<Row> {
    const { columns } = this.options
    let shown = this.#shown.get(key)
    if (!shown) this.#shown.set(key, (shown = this.#newLine(row)))
    shown.row = row
    columns.forEach((column, i) => {
      const cell = shown.cells[i]!
      setText(cell, column.text(row))
      if (column.tone) setAttribute(cell, 'data-tone', column.tone(row))
      if (column.hint) setAttribute(cell, 'title', column.hint(row))
    })
    return shown
  }

  #newLine(row: Row): Shown<Row> {
    const { columns, action } = this.options
    const cells = columns.map(({ title, numeric }) =>
      element('td', { role: 'cell', 'data-title': title, class: numeric ? 'number' : null }),
    )
    const line = element('tr', { role: 'row' }, ...cells)
    const shown = { line, cells, row }
    if (action) {
      const act = button(action.title, () => action.act(shown.row), { 'aria-label': action.label(row) })
      line.append(element('td', { role: 'cell', class: 'action' }, act))
    }
    return shown
  }
}
