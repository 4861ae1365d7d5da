// Checks deliveries as a receiver does, by the package that Standard Webhooks gives out.
//
// In: SECRET, and on standard input JSON: what arrived, each with its headers and its body. Out: one line of JSON: the type of each, or why
// it is refused.
import { readFileSync } from 'node:fs'
import { Webhook } from 'standardwebhooks'

const webhook = new Webhook(process.env.SECRET)
const checked = JSON.parse(readFileSync(0, 'utf8')).map(({ headers, body }) => {
  try {
    return webhook.verify(body, headers).type
  } catch (error) {
    return `refused: ${error.message}`
  }
})
console.log(JSON.stringify(checked))
