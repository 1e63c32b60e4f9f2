// Gives the gateway the token, and gets the cookie that stands for it from then on.
import { chosenTheme } from './theme.ts'

chosenTheme()
const form = document.getElementById('form') as HTMLFormElement
const token = document.getElementById('token') as HTMLInputElement
const answer = document.getElementById('answer')!

form.addEventListener('submit', (event) => {
  event.preventDefault()
  logIn().catch((error: Error) => (answer.textContent = `No answer: ${error.message}`))
})

async function logIn() {
  answer.textContent = ''
  const response = await fetch('/login', { method: 'POST', body: JSON.stringify({ token: token.value }) })
  if (response.ok) return location.replace('/')
  const { error } = (await response.json()) as { error: string }
  answer.textContent = `Not logged in: ${error}`
  token.select()
}
