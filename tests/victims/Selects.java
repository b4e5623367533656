/** A healthy loop around Selector.select(): with timers first, then without. Begins when a line arrives on stdin. */
import java.net.InetSocketAddress;
import java.nio.channels.*;
import java.nio.file.*;

public class Selects {
    /** A thread of this process is in epoll_wait(…, -1). */
    private static boolean waitsForEver() throws Exception {
        try (DirectoryStream<Path> tasks = Files.newDirectoryStream(Path.of("/proc/self/task"))) {
            for (Path task : tasks) {
                String[] fields = Files.readString(task.resolve("syscall")).split(" ");
                if (fields.length > 4 && fields[0].equals("232") && fields[4].endsWith("ffffffff")) return true;
            }
        }
        return false;
    }

    public static void main(String[] args) throws Exception {
        System.in.read();
        Selector selector = Selector.open();
        ServerSocketChannel server = ServerSocketChannel.open().bind(new InetSocketAddress("127.0.0.1", 0));
        SocketChannel client = SocketChannel.open(server.getLocalAddress());
        SocketChannel accepted = server.accept();
        client.configureBlocking(false);
        client.register(selector, SelectionKey.OP_READ);
        Thread loop = new Thread(() -> {
            try {
                for (int i = 0; i < 40; i++) selector.select(3);
                selector.select();
            } catch (java.io.IOException e) {
                throw new java.io.UncheckedIOException(e);
            }
        }, "selector");
        loop.setDaemon(true);
        loop.start();
        while (!waitsForEver()) Thread.sleep(1);
        long pid = ProcessHandle.current().pid();
        System.out.printf("{\"ready\":true,\"shape\":\"java\",\"pid\":%d,\"threads\":[]}%n", pid);
        while (System.in.read() >= 0) { }
        accepted.close();
    }
}
