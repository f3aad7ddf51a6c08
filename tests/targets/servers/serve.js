// Answers every request, with some work for the collector; says on which port.
const http = require('http');
const server = http.createServer((request, response) => {
	const parts = [];
	for (let i = 0; i < 50; i++)
		parts.push({ number: i, text: 'x'.repeat(i) });
	response.end(JSON.stringify(parts.map((part) => part.text.length)));
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
