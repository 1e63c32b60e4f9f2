// A process of its own with few descriptors: it accepts, says how many there were so far, and closes all it has at each line
// that it is told.
import { CLOSED, ACCEPTED, Relay } from './relay-fixture.ts'

const relay = await Relay.start()
const { port, tag } = relay.listen(true)
console.log(port)
let arrived = 0
const here = new Set<bigint>()
relay.heard = ({ kind, id }) => {
  if (kind === ACCEPTED) {
    arrived++
    here.add(id)
  } else if (kind === CLOSED) here.delete(id)
}
const tell = () => console.log(`${arrived} of listener ${tag}`)
setInterval(tell, 50)
for await (const _ of console) for (const id of here) relay.close({ id }, 'reset')
