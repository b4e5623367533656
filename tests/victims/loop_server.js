// HTTP in one event loop, which a line on stdin brings to a stand: `node loop_server.js waits|spins|healthy`. Prints its port.
//
// waits: the next request waits in Atomics.wait, without a limit, in the main thread
// spins: the next request computes for ever
// healthy: nothing changes
const http = require('http');

let stopped = false;

function waitsForEver() { Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); }
function spinsForEver() { for (let n = 0; ; n = (n + 1) % 1000) if (n < 0) return; }

const server = http.createServer((request, response) => {
    if (stopped && process.argv[2] === 'waits') waitsForEver();
    if (stopped && process.argv[2] === 'spins') spinsForEver();
    response.setHeader('Content-Length', 2);
    response.end('ok');
});
server.keepAliveTimeout = 0;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('data', () => {
    stopped = true;
    console.log('stopped');
});
