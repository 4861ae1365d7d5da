// HubSpot's own Node client with its own retries on: one job that creates a company, twice, as a queue that lost its answer does.
//
// In: GATEWAY (…/gateway/<connection>), API_KEY, NAME, HEADERS (JSON). Out: one line of JSON.
import { Client } from '@hubspot/api-client'

const { GATEWAY, API_KEY, NAME, HEADERS } = process.env
const hubspot = new Client({
  accessToken: API_KEY,
  basePath: GATEWAY,
  numberOfApiCallRetries: 3,
  defaultHeaders: JSON.parse(HEADERS),
})

async function job() {
  try {
    const { id } = await hubspot.crm.companies.basicApi.create({ properties: { name: NAME }, associations: [] })
    return { id }
  } catch (error) {
    return { code: error.code ?? 0, error: error.headers?.['evergrant-error'] ?? error.message }
  }
}

console.log(JSON.stringify([await job(), await job()]))
