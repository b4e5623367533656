/**
 * HTTP by a pool of threads, with a pool of connections to a backend that answers each line with the same line:
 * `PoolServer nested|good ADDRESS SIZE`. Nested, a request takes a second connection while it holds one. Prints its port.
 */
import java.io.*;
import java.net.*;
import java.util.concurrent.*;
import com.sun.net.httpserver.HttpServer;

public class PoolServer {
    static final BlockingQueue<Socket> connections = new LinkedBlockingQueue<>();

    static void question(Socket connection) throws IOException {
        connection.getOutputStream().write("question\n".getBytes());
        for (int read = 0; read != '\n'; read = connection.getInputStream().read()) {
            if (read < 0) throw new IOException("the backend is gone");
        }
    }

    static void one(boolean nested) throws Exception {
        Socket first = connections.take();
        try {
            question(first);
            if (!nested) return;
            Socket second = connections.take();
            question(second);
            connections.put(second);
        } finally {
            connections.put(first);
        }
    }

    public static void main(String[] args) throws Exception {
        boolean nested = args[0].equals("nested");
        String[] address = args[1].split(":");
        int size = Integer.parseInt(args[2]);
        for (int i = 0; i < size; i++) {
            Socket connection = new Socket(address[0], Integer.parseInt(address[1]));
            connection.setTcpNoDelay(true);
            connections.put(connection);
        }
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 64);
        server.setExecutor(Executors.newFixedThreadPool(2 * size));
        server.createContext("/", exchange -> {
            try {
                one(nested);
                exchange.sendResponseHeaders(200, 2);
                exchange.getResponseBody().write("ok".getBytes());
                exchange.close();
            } catch (Exception error) {
                error.printStackTrace();
            }
        });
        server.start();
        System.out.println(server.getAddress().getPort());
    }
}
