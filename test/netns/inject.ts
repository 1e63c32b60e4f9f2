// Loaded into the program before itself (BUN_OPTIONS): errors that nobody catches, whenever a signal asks for one.
process.on('SIGUSR1', () => {
  throw new Error('injected: thrown in a callback')
})
process.on('SIGUSR2', () => {
  void Promise.reject(new Error('injected: a promise nobody takes'))
})
