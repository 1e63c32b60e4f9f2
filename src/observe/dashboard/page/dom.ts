// Making elements. Everything that is said comes in as text: names, errors and server names are the network's.

type Content = Node | string
type Attributes = Record<string, string | null>

/** null: the attribute is not there. */
export function element<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Attributes = {},
  ...content: Content[]
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value)
  made.append(...content)
  return made
}

export function button(text: string, act: () => void, attributes: Attributes = {}): HTMLButtonElement {
  const made = element('button', { type: 'button', ...attributes }, text)
  made.addEventListener('click', act)
  return made
}

export const byId = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E

/** Only what is different touches the page: a selection or a tooltip there stays. */
export function setText(where: HTMLElement, text: string) {
  if (where.textContent !== text) where.textContent = text
}

export function setAttribute(where: HTMLElement, name: string, value: string) {
  if (where.getAttribute(name) !== value) where.setAttribute(name, value)
}

/** Asks before something is done that cannot be undone. */
export function confirmed(question: { title: string; text: string; yes: string }): Promise<boolean> {
  const dialog = byId<HTMLDialogElement>('confirm')
  byId('confirm-title').textContent = question.title
  byId('confirm-text').textContent = question.text
  byId('confirm-yes').textContent = question.yes
  const { promise, resolve } = Promise.withResolvers<boolean>()
  // Not its close event, which comes later: by then the next question may have been asked.
  dialog.oncancel = () => resolve(false)
  dialog.querySelector('form')!.onsubmit = ({ submitter }) => resolve((submitter as HTMLButtonElement).value === 'yes')
  dialog.showModal()
  return promise
}
