import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.locks.ReentrantLock;

/** Healthy: queues, locks, parks, and a pool that rests. */
public class BusyLocks {
    public static void main(String[] args) throws Exception {
        var queue = new ArrayBlockingQueue<Integer>(4);
        var lock = new ReentrantLock();
        for (int i = 0; i < 4; i++) {
            start(() -> queue.put(1));
            start(queue::take);
            start(() -> {
                lock.lock();
                try {
                    Thread.sleep(2);
                } finally {
                    lock.unlock();
                }
            });
        }
        var pool = Executors.newFixedThreadPool(4);
        for (int i = 0; i < 8; i++) pool.submit(() -> 1);
        System.out.println("ready");
        System.in.read();
        System.exit(0);
    }

    interface Step {
        void run() throws Exception;
    }

    static void start(Step step) {
        var thread = new Thread(() -> {
            try {
                while (true) step.run();
            } catch (Exception e) {
                System.exit(1);
            }
        });
        thread.setDaemon(true);
        thread.start();
    }
}
