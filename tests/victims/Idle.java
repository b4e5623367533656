/** A healthy idle Java program: a pool without work, a scheduled executor, a queue, a monitor. */
import java.util.concurrent.*;

public class Idle {
    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        for (int i = 0; i < 4; i++) pool.submit(() -> { }).get();
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(1);
        timer.scheduleAtFixedRate(() -> { }, 0, 1, TimeUnit.HOURS);
        BlockingQueue<String> queue = new LinkedBlockingQueue<>();
        new Thread(() -> { try { queue.take(); } catch (InterruptedException e) { } }).start();
        Object monitor = new Object();
        new Thread(() -> { synchronized (monitor) { try { monitor.wait(); } catch (InterruptedException e) { } } }).start();
        System.out.println("ready");
        System.in.read();
        System.exit(0);
    }
}
