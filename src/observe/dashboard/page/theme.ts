// Dark or light: as the system says, until somebody chooses; the choice is kept in this browser.

const KEY = 'sluice-theme'
type Theme = 'light' | 'dark'

const systems = () => (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')
const other = (theme: Theme): Theme => (theme === 'dark' ? 'light' : 'dark')

/** Shows what was chosen here before; undefined: nothing was. */
export function chosenTheme(): Theme | undefined {
  const kept = localStorage.getItem(KEY)
  const theme = kept === 'dark' || kept === 'light' ? kept : undefined
  if (theme) document.documentElement.dataset.theme = theme
  return theme
}

/** @param changed what is drawn has to be drawn anew. */
export function themeButton(button: HTMLButtonElement, changed: () => void) {
  const shown = () => (document.documentElement.dataset.theme as Theme | undefined) ?? systems()
  const show = () => {
    button.textContent = other(shown()) === 'dark' ? 'Dark' : 'Light'
    changed()
  }
  button.addEventListener('click', () => {
    const theme = other(shown())
    document.documentElement.dataset.theme = theme
    localStorage.setItem(KEY, theme)
    show()
  })
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', show)
  chosenTheme()
  show()
}
