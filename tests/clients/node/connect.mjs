// A customer in a real browser: opens the connect link, reads the page, consents, lands on the result.
//
// In: LINK, CHROMIUM, SHOTS (folder for pictures, may be missing), CHOOSE (`grant` or `deny`), PORTAL. Out: one line of JSON.
import { chromium } from 'playwright-core'

const { LINK, CHROMIUM, SHOTS, CHOOSE = 'grant', PORTAL } = process.env
const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})
try {
  const page = await browser.newPage({ viewport: { width: 900, height: 700 } })
  const complaints = []
  // Complaints about pages of ours alone; the provider's are not ours to mend.
  const ours = (url) => url.startsWith(new URL(LINK).origin)
  page.on('console', (message) => {
    if (message.type() === 'error' && ours(message.location().url)) complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(String(error)))
  const shot = async (name) => { if (SHOTS) await page.screenshot({ path: `${SHOTS}/${name}.png` }) }
  await page.goto(LINK)
  const asked = await page.innerText('main')
  await shot('1-connect')
  await page.click('main form button')
  await page.waitForLoadState()
  await shot('2-consent')
  const consent = page.url()
  if (PORTAL) await page.check(`input[name=hub_id][value="${PORTAL}"]`)
  await page.click(`button[name=decision][value=${CHOOSE}]`)
  await page.waitForURL((url) => url.href !== consent && !url.pathname.startsWith('/oauth/authorize'))
  await shot('3-result')
  console.log(JSON.stringify({ asked, consent, result: await page.innerText('main'), url: page.url(), title: await page.title(), complaints }))
} finally {
  await browser.close()
}
